"""What `ingest status` collects about the embedded queue."""

import time
from pathlib import Path

from ingest import settings
from ingest.backends import broker_backend
from ingest.domain import topology
from ingest.domain.messages import Message
from ingest.operations.dead_reasons import QueuedDeadReasons
from ingest.operations.status import StatusCollector
from tests.contract.test_dead_letters import rejected_message

DIED = 1_775_736_000


class Clock:
    """A clock that tests set, in Unix seconds."""

    now = DIED + 60.0

    def __call__(self) -> float:
        return self.now


async def test_age_of_dead_letters_grows_although_they_are_read_once(tmp_path: Path) -> None:
    current = settings.load(data_dir=tmp_path)
    broker = await broker_backend(current).open("test")
    await (await broker.publisher()).publish([rejected_message(1, now="2026-04-09T12:00:00Z")])
    await broker.close()
    clock = Clock()
    collector = StatusCollector(current, [], clock)
    for expected in (60.0, 3660.0):
        clock.now = DIED + expected
        overview = await collector.collect()
        ages = {queue.name: queue.oldest for queue in overview.broker.queues if queue.ready}
        assert [reason.oldest for reason in overview.dead or []] == [expected]
        assert ages == {topology.INGEST_DEAD: expected}


async def test_dead_letters_are_read_again_after_an_outage(tmp_path: Path) -> None:
    """Also if there are as many as before, but not more often than every 30 s."""
    current = settings.load(data_dir=tmp_path)
    broker = await broker_backend(current).open("test")
    await (await broker.publisher()).publish([rejected_message(1, now="2026-04-09T12:00:00Z")])
    await broker.close()
    monotonic = Clock()
    dead = QueuedDeadReasons(broker_backend(current), monotonic=monotonic)
    collector = StatusCollector(current, [], dead=dead)
    queue, away = tmp_path / "queue.db", tmp_path / "away"
    assert len((await collector.collect()).dead or []) == 1
    queue.rename(away)
    lost = await collector.collect()
    assert (lost.dead, lost.dead_note) == (None, "unknown")
    away.rename(queue)
    early = await collector.collect()
    assert (early.dead, early.dead_note) == (None, "not read yet")
    monotonic.now += 31
    assert len((await collector.collect()).dead or []) == 1


async def test_oldest_is_the_age_of_the_first_message_that_is_ready(tmp_path: Path) -> None:
    current = settings.load(data_dir=tmp_path)
    broker = await broker_backend(current).open("test")
    sent = int(time.time())
    await (await broker.publisher()).publish([task(sent - 7000), task(sent - 500), task(sent)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 1)
    assert len(await consumer.receive()) == 1
    queues = (await broker_backend(current).state()).queues
    await broker.close()
    (tasks,) = [queue for queue in queues if queue.name == topology.INGEST_TASKS]
    assert (tasks.ready, tasks.unacked) == (2, 1)
    assert tasks.oldest is not None
    assert 500 <= tasks.oldest < 530


def task(timestamp: int) -> Message:
    """Return a submission, sent at a Unix time."""
    return Message(
        exchange=topology.SUBMISSIONS,
        routing_key="task.submitted.acme",
        body=b"{}",
        message_id=str(timestamp),
        timestamp=timestamp,
    )
