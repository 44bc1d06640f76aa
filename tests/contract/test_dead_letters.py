"""What `domain.ports.DeadLetterQueue` promises, on every broker, and what `broker.redrive` makes of it."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.broker.embedded.dead_letters import EmbeddedDeadLetters
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters
from ingest.domain import topology
from ingest.domain.dead_letters import DeadLetter, dead_letter
from ingest.domain.errors import BrokerUnavailable, InvalidSubmission, Reason
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Broker, DeadLetterQueue
from ingest.operations.dead_letters import Selection, gather, redrive, select
from tests.support.deliveries import delivery
from tests.support.embedded_queue import depth
from tests.support.fakes import ScriptedPublisher

EVERY = Selection()
Open = Callable[[], Awaitable[DeadLetterQueue]]


class Place:
    """A broker, and a way to open its dead letters anew, as each command does."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = url
        self.path = path

    @property
    def trusted(self) -> frozenset[str]:
        return frozenset({"guest" if self.url else "ingest"})

    async def broker(self) -> Broker:
        return RabbitBroker(self.url) if self.url else await EmbeddedBroker.open(self.path)

    async def dead(self, *, clear: bool = False) -> DeadLetterQueue:
        if self.url:
            return RabbitDeadLetters(RabbitBroker(self.url), None, first=7)
        return (
            (await EmbeddedBroker.open(self.path)).dead_letters()
            if clear
            else await EmbeddedDeadLetters.read_only(self.path)
        )

    async def put(self, messages: Sequence[Message]) -> None:
        broker = await self.broker()
        await broker.declare()
        publisher = await broker.publisher()
        assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}
        await broker.close()

    async def ids(self) -> list[str]:
        """As they stand in the queue."""
        queue = await self.dead()
        found = [each.message_id or "" async for some in queue.browse() for each in some]
        await queue.close()
        return found

    async def depth(self, queue: str) -> int:
        """Messages in another queue."""
        broker = await self.broker()
        if isinstance(broker, EmbeddedBroker):
            found = await depth(broker, queue)
        else:
            assert isinstance(broker, RabbitBroker)
            found = ((await broker.inspect([queue])).queues[queue] or (0, 0))[0]
        await broker.close()
        return found


@pytest.fixture(params=["embedded", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    url = request.getfixturevalue("rabbitmq_url") if request.param == "rabbitmq" else ""
    return Place(url, tmp_path / "queue.db")


def refused(number: int, reason: Reason = Reason.QUOTA_EXHAUSTED, cust_id: str = "acme", now: str = "") -> Message:
    came = delivery(
        body=b'{"n":%d}' % number, message_id=f"m{number}", routing_key=f"task.submitted.{cust_id}", user_id=None
    )
    written = dead_letter(came, InvalidSubmission(reason, "why"), now)
    return Message(
        **{name: getattr(written, name) for name in Message.__struct_fields__} | {"message_id": f"d{number}"}
    )


async def test_thirty_looks_lose_nothing_and_keep_the_order(place: Place) -> None:
    """Looking changes neither the messages nor their order."""
    await place.put([refused(i) for i in range(100)])
    for _ in range(30):
        assert await place.ids() == [f"d{i}" for i in range(100)]


async def test_looks_that_end_early_lose_nothing(place: Place) -> None:
    """Given up half-way, in a command that was interrupted: all are there for the next."""
    await place.put([refused(i) for i in range(100)])
    for _ in range(10):
        queue = await place.dead()
        async for _some in queue.browse():
            break
        await queue.close()
    assert set(await place.ids()) == {f"d{i}" for i in range(100)}


async def test_a_look_ends_where_the_queue_ended_at_its_beginning(place: Place) -> None:
    """What comes in meanwhile is not handed out, else redriving what is refused again would never end."""
    await place.put([refused(i) for i in range(10)])
    queue = await place.dead(clear=True)
    broker = None if not place.url else await place.broker()
    seen: list[Delivery] = []
    async for some in queue.browse():
        seen += some
        if broker is not None:
            await (await broker.publisher()).publish([refused(100 + len(seen))])
    assert [each.message_id for each in seen] == [f"d{i}" for i in range(10)]
    await queue.close()
    if broker is not None:
        await broker.close()


async def test_removed_is_gone_and_the_rest_stays_in_order(place: Place) -> None:
    """Every second one."""
    await place.put([refused(i) for i in range(50)])
    queue = await place.dead(clear=True)
    async for some in queue.browse():
        await queue.remove([each for each in some if int((each.message_id or "")[1:]) % 2])
    await queue.close()
    assert sorted(await place.ids(), key=lambda id_: int(id_[1:])) == [f"d{i}" for i in range(0, 50, 2)]


async def test_selections(place: Place) -> None:
    """By id, reason, customer, age; all of them together; what has no time has no age."""
    hour_ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
    await place.put(
        [
            refused(1, now=hour_ago),
            refused(2, Reason.INVALID, now=hour_ago),
            refused(3, cust_id="other", now=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
            refused(4),
        ]
    )

    async def ids(**chosen: object) -> list[str]:
        queue = await place.dead()
        found: list[DeadLetter] = []
        async for some in select(queue, Selection(**chosen), place.trusted, lambda _: None):  # type: ignore[arg-type]
            found += some
        await queue.close()
        return [each.id for each in found]

    assert await ids() == ["d1", "d2", "d3", "d4"]
    assert await ids(ids=frozenset({"d2", "nothing"})) == ["d2"]
    assert await ids(reasons=frozenset({"invalid", "malformed"})) == ["d2"]
    assert await ids(customer="other") == ["d3"]
    assert await ids(older_than=1800) == ["d1", "d2"]
    assert await ids(newer_than=1800) == ["d3"]
    assert await ids(older_than=1800, reasons=frozenset({"quota_exhausted"})) == ["d1"]


async def test_redriven_comes_as_it_came(place: Place) -> None:
    """Into its own queue, with its id and body; what may not pass stays; a dry run does nothing."""
    await place.put([refused(1), refused(2, Reason.USER_MISMATCH)])
    for dry_run in (True, False):
        queue = await place.dead(clear=True)
        publisher = await (await _publisher_broker(place, queue)).publisher()
        report = await redrive(queue, publisher, EVERY, place.trusted, dry_run=dry_run)
        assert (report.done, sum(report.kept.values()), report.failed) == (
            Counter({"quota_exhausted": 1}),
            1,
            Counter(),
        )
        await publisher.close()
        await queue.close()
        assert await place.depth(topology.INGEST_TASKS) == (0 if dry_run else 1)
    assert await place.ids() == ["d2"]
    broker = await place.broker()
    (came,) = await (await broker.consumer(topology.INGEST_TASKS, 1)).receive()
    assert (came.body, came.message_id, came.routing_key) == (b'{"n":1}', "m1", "task.submitted.acme")
    assert came.user_id in place.trusted
    await broker.close()


async def _publisher_broker(place: Place, queue: DeadLetterQueue) -> Broker:
    """Beside an open dead-letter queue: the embedded file is one process's, and one broker's."""
    if place.url:
        return RabbitBroker(place.url)
    assert isinstance(queue, EmbeddedDeadLetters)
    return EmbeddedBroker(queue._file, queue._lock)  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", [each for each in PublishOutcome if each is not PublishOutcome.CONFIRMED])
async def test_what_was_not_confirmed_stays(place: Place, outcome: PublishOutcome) -> None:
    """Not removed, counted, and the rest is not tried."""
    await place.put([refused(i) for i in range(500)])
    queue = await place.dead(clear=True)
    publisher = ScriptedPublisher(outcome)
    publisher.ready = ScriptedPublisher().ready  # type: ignore[method-assign]
    report = await redrive(queue, publisher, EVERY, place.trusted)
    await queue.close()
    assert report.done.total() == 0
    assert report.failed == Counter({str(outcome): len(publisher.sent)})
    assert len(publisher.sent) < 500
    assert await place.ids() == [f"d{i}" for i in range(500)]


async def test_a_rate_is_kept(place: Place) -> None:
    """30 at 50 a second take at least half a second."""
    await place.put([refused(i) for i in range(30)])
    queue = await place.dead(clear=True)
    start = time.monotonic()
    report = await redrive(queue, ScriptedPublisher(), EVERY, place.trusted, rate=50)
    assert time.monotonic() - start > 0.5
    assert report.done.total() == 30
    await queue.close()
    assert await place.ids() == []


async def test_gathered_can_be_removed(place: Place) -> None:
    """What a purge has shown, and nothing else."""
    await place.put([refused(i, Reason.INVALID if i % 2 else Reason.QUOTA_EXHAUSTED) for i in range(20)])
    queue = await place.dead(clear=True)
    groups, deliveries = await gather(queue, Selection(reasons=frozenset({"invalid"})), place.trusted, lambda _: None)
    assert {each.reason: each.count for each in groups.values()} == {"invalid": 10}
    await queue.remove(deliveries)
    await queue.close()
    assert await place.ids() == [f"d{i}" for i in range(0, 20, 2)]


async def test_a_lost_connection_is_told(place: Place, request: pytest.FixtureRequest) -> None:
    """Nothing is reported as removed that will come again."""
    if not place.url:
        pytest.skip("a file has no connection")
    await place.put([refused(1)])
    queue = await place.dead()
    taken = [each async for some in queue.browse() for each in some]
    assert isinstance(queue, RabbitDeadLetters)
    assert queue._consumer is not None
    await queue._consumer.close()
    with pytest.raises(BrokerUnavailable, match="still there"):
        await queue.remove(taken)
    await queue.close()
    assert await place.ids() == ["d1"]
