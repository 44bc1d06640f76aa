"""The promises of `domain.ports.DeadLetterQueue`, and what `operations.dead_letters` does with it, on every broker."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.broker.embedded.dead_letters import EmbeddedDeadLetters
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters
from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.dead_letters import DeadLetter, dead_letter
from ingest.domain.errors import BrokerUnavailable, InvalidSubmission, Reason
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Broker, DeadLetterQueue
from ingest.operations.dead_letters import Progress, Report, Selection, gather, redrive, remove, select
from tests.servers import RabbitServer
from tests.support.deliveries import delivery as make_delivery
from tests.support.embedded_queue import depth
from tests.support.fakes import ScriptedPublisher

ALL = Selection()


class DeadLetterHarness:
    """Opens a broker and its dead letters, each time as a new command does.

    Args:
        url: of RabbitMQ; empty for the embedded broker.
        path: the file of the embedded broker.
        management: RabbitMQ's, which has the policies of the topology: without them, RabbitMQ 4 is not read.

    `first` is the prefetch at the start.
    """

    def __init__(self, url: str, path: Path, management: Management | None) -> None:
        self.url = url
        self.path = path
        self._management = management
        self.first = 7

    @property
    def trusted_users(self) -> frozenset[str]:
        return frozenset({"guest" if self.url else "ingest"})

    async def open_broker(self) -> Broker:
        return RabbitBroker(self.url) if self.url else await EmbeddedBroker.open(self.path)

    async def open_broker_beside(self, queue: DeadLetterQueue) -> Broker:
        """Open a broker while `queue` is open. It must be writable, because the embedded file has one lock."""
        if self.url:
            return RabbitBroker(self.url)
        assert isinstance(queue, EmbeddedDeadLetters)
        assert queue._lock is not None
        return EmbeddedBroker(queue._file, queue._lock)

    async def open_dead_letters(self, *, writable: bool = False) -> DeadLetterQueue:
        if self.url:
            return RabbitDeadLetters(RabbitBroker(self.url), self._management, first=self.first)
        if writable:
            return (await EmbeddedBroker.open(self.path)).dead_letters()
        return await EmbeddedDeadLetters.read_only(self.path)

    async def publish(self, messages: Sequence[Message]) -> None:
        broker = await self.open_broker()
        await broker.declare()
        publisher = await broker.publisher()
        assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}
        await broker.close()

    async def message_ids(self) -> list[str]:
        """Return the message_ids of all dead letters, in the order of the queue."""
        queue = await self.open_dead_letters()
        message_ids = [delivery.message_id or "" async for deliveries in queue.browse() for delivery in deliveries]
        await queue.close()
        return message_ids

    async def depth(self, queue: str) -> int:
        """Return the number of messages in any queue."""
        broker = await self.open_broker()
        if isinstance(broker, EmbeddedBroker):
            messages = await depth(broker, queue)
        else:
            assert isinstance(broker, RabbitBroker)
            messages = ((await broker.inspect([queue])).queues[queue] or (0, 0))[0]
        await broker.close()
        return messages


@pytest.fixture(params=["embedded", "rabbitmq"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> DeadLetterHarness:
    url, management = "", None
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbitmq_url")
        server: RabbitServer = request.getfixturevalue("rabbitmq")
        management = Management(server.management_url.replace("//", "//guest:guest@"), url.rpartition("/")[2])
        management.apply_policies()
    return DeadLetterHarness(url, tmp_path / "queue.db", management)


def rejected_message(
    number: int, reason: Reason = Reason.QUOTA_EXHAUSTED, cust_id: str = "acme", now: str = ""
) -> Message:
    """Return a dead letter with the message_id `d<number>`, of a direct submission with the message_id `m<number>`."""
    delivery = make_delivery(
        body=b'{"n":%d}' % number,
        message_id=f"m{number}",
        routing_key=f"task.submitted.{cust_id}",
        user_id=None,
        timestamp=1_775_000_000,
    )
    message = dead_letter(delivery, InvalidSubmission(reason, "why"), now)
    return Message(
        **{name: getattr(message, name) for name in Message.__struct_fields__} | {"message_id": f"d{number}"}
    )


async def test_browsing_30_times_loses_nothing_and_keeps_the_order(harness: DeadLetterHarness) -> None:
    await harness.publish([rejected_message(i) for i in range(100)])
    for _ in range(30):
        assert await harness.message_ids() == [f"d{i}" for i in range(100)]


async def test_browsing_that_ends_early_loses_nothing(harness: DeadLetterHarness) -> None:
    """An interrupted command closes the queue after it has read a part of it."""
    await harness.publish([rejected_message(i) for i in range(100)])
    for _ in range(10):
        queue = await harness.open_dead_letters()
        async for _deliveries in queue.browse():
            break
        await queue.close()
    assert set(await harness.message_ids()) == {f"d{i}" for i in range(100)}


async def test_browse_leaves_out_messages_that_arrive_after_its_start(harness: DeadLetterHarness) -> None:
    """Otherwise a redrive would never end if each redriven submission is rejected again."""
    await harness.publish([rejected_message(i) for i in range(10)])
    queue = await harness.open_dead_letters(writable=True)
    broker = await harness.open_broker_beside(queue)
    publisher = await broker.publisher()
    browsed: list[Delivery] = []
    async for deliveries in queue.browse():
        browsed += deliveries
        assert await publisher.publish([rejected_message(100 + len(browsed))]) == [PublishOutcome.CONFIRMED]
    assert [delivery.message_id for delivery in browsed] == [f"d{i}" for i in range(10)]
    await queue.close()
    await broker.close()


async def test_removed_dead_letters_are_gone_and_all_others_are_kept(harness: DeadLetterHarness) -> None:
    await harness.publish([rejected_message(i) for i in range(50)])
    queue = await harness.open_dead_letters(writable=True)
    async for deliveries in queue.browse():
        await queue.remove([delivery for delivery in deliveries if int((delivery.message_id or "")[1:]) % 2])
    await queue.close()
    assert sorted(await harness.message_ids(), key=lambda name: int(name[1:])) == [f"d{i}" for i in range(0, 50, 2)]


async def test_select_combines_ids_reasons_customer_and_age(harness: DeadLetterHarness) -> None:
    """A dead letter without a time has no age, so it is not selected by age."""
    hour_ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
    await harness.publish(
        [
            rejected_message(1, now=hour_ago),
            rejected_message(2, Reason.INVALID, now=hour_ago),
            rejected_message(3, cust_id="other", now=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
            rejected_message(4),
        ]
    )

    async def selected_ids(**criteria: object) -> list[str]:
        queue = await harness.open_dead_letters()
        selection = Selection(**criteria)  # type: ignore[arg-type]
        selected: list[DeadLetter] = []
        async for dead_letters in select(queue, selection, harness.trusted_users, Progress()):
            selected += dead_letters
        await queue.close()
        return [dead.id for dead in selected]

    assert await selected_ids() == ["d1", "d2", "d3", "d4"]
    assert await selected_ids(ids=frozenset({"d2", "nothing"})) == ["d2"]
    assert await selected_ids(reasons=frozenset({"invalid", "malformed"})) == ["d2"]
    assert await selected_ids(customer="other") == ["d3"]
    assert await selected_ids(older_than=1800) == ["d1", "d2"]
    assert await selected_ids(newer_than=1800) == ["d3"]
    assert await selected_ids(older_than=1800, reasons=frozenset({"quota_exhausted"})) == ["d1"]


async def test_redrive_submits_original_message_and_keeps_what_may_not_be_redriven(harness: DeadLetterHarness) -> None:
    """A dry run reports the same and changes nothing."""
    await harness.publish([rejected_message(1), rejected_message(2, Reason.USER_MISMATCH)])
    for dry_run in (True, False):
        queue = await harness.open_dead_letters(writable=True)
        broker = await harness.open_broker_beside(queue)
        report = await redrive(queue, await broker.publisher(), ALL, harness.trusted_users, dry_run=dry_run)
        assert (report.done, sum(report.kept.values()), report.failed) == (
            Counter({"quota_exhausted": 1}),
            1,
            Counter(),
        )
        await queue.close()
        await broker.close()
        assert await harness.depth(topology.INGEST_TASKS) == (0 if dry_run else 1)
    assert await harness.message_ids() == ["d2"]
    broker = await harness.open_broker()
    (redriven,) = await (await broker.consumer(topology.INGEST_TASKS, 1)).receive()
    assert (redriven.body, redriven.message_id, redriven.routing_key) == (b'{"n":1}', "m1", "task.submitted.acme")
    assert redriven.user_id in harness.trusted_users
    assert redriven.timestamp == 1_775_000_000
    await broker.close()


@pytest.mark.parametrize("outcome", [outcome for outcome in PublishOutcome if outcome is not PublishOutcome.CONFIRMED])
async def test_redrive_stops_and_removes_nothing_if_a_publish_is_not_confirmed(
    harness: DeadLetterHarness, outcome: PublishOutcome
) -> None:
    await harness.publish([rejected_message(i) for i in range(500)])
    queue = await harness.open_dead_letters(writable=True)
    publisher = ScriptedPublisher(outcome)
    publisher.ready = ScriptedPublisher().ready  # type: ignore[method-assign]
    report = await redrive(queue, publisher, ALL, harness.trusted_users)
    await queue.close()
    assert report.done.total() == 0
    assert report.failed == Counter({str(outcome): len(publisher.sent)})
    assert len(publisher.sent) < 500
    assert await harness.message_ids() == [f"d{i}" for i in range(500)]


async def test_redrive_of_30_at_50_per_second_takes_half_a_second(harness: DeadLetterHarness) -> None:
    await harness.publish([rejected_message(i) for i in range(30)])
    queue = await harness.open_dead_letters(writable=True)
    start = time.monotonic()
    report = await redrive(queue, ScriptedPublisher(), ALL, harness.trusted_users, rate=50)
    assert time.monotonic() - start > 0.5
    assert report.done.total() == 30
    await queue.close()
    assert await harness.message_ids() == []


async def test_gathered_dead_letters_can_be_removed(harness: DeadLetterHarness) -> None:
    """A purge removes exactly what it has shown."""
    await harness.publish([rejected_message(i, Reason.INVALID if i % 2 else Reason.QUOTA_EXHAUSTED) for i in range(20)])
    queue = await harness.open_dead_letters(writable=True)
    selection = Selection(reasons=frozenset({"invalid"}))
    groups, deliveries = await gather(queue, selection, harness.trusted_users, Progress())
    assert {group.reason: group.count for group in groups.values()} == {"invalid": 10}
    await remove(queue, deliveries, Progress())
    await queue.close()
    assert await harness.message_ids() == [f"d{i}" for i in range(0, 20, 2)]


class SlowPublisher(ScriptedPublisher):
    """Confirms after a moment. `publishing` is set while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.publishing = asyncio.Event()

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        self.publishing.set()
        await asyncio.sleep(0.05)
        return await super().publish(messages)


async def test_cancelled_redrive_finishes_its_chunk_and_reports_it(harness: DeadLetterHarness) -> None:
    await harness.publish([rejected_message(i) for i in range(300)])
    queue = await harness.open_dead_letters(writable=True)
    publisher, report, progress = SlowPublisher(), Report(), Progress()
    redriving = asyncio.create_task(
        redrive(queue, publisher, ALL, harness.trusted_users, report=report, progress=progress)
    )
    await publisher.publishing.wait()
    redriving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await redriving
    await queue.close()
    assert 0 < report.done.total() == progress.done == len(publisher.sent) < 300
    assert report.not_tried == report.matched - progress.done
    assert len(await harness.message_ids()) == 300 - progress.done


async def test_cancelled_removal_counts_exactly_what_it_has_removed(harness: DeadLetterHarness) -> None:
    await harness.publish([rejected_message(i) for i in range(500)])
    queue = await harness.open_dead_letters(writable=True)
    _, deliveries = await gather(queue, ALL, harness.trusted_users, Progress())
    progress = Progress()
    removing = asyncio.create_task(remove(queue, deliveries, progress))
    while not progress.done:
        await asyncio.sleep(0)
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing
    await queue.close()
    assert 0 < progress.done < 500
    assert len(await harness.message_ids()) == 500 - progress.done


async def test_progress_handles_every_dead_letter_and_counts_as_done_only_what_is_redriven(
    harness: DeadLetterHarness,
) -> None:
    """Of five, one is not selected, and one is kept."""
    reasons = [Reason.INVALID, *[Reason.QUOTA_EXHAUSTED] * 3, Reason.USER_MISMATCH]
    await harness.publish([rejected_message(i, reason) for i, reason in enumerate(reasons)])
    queue = await harness.open_dead_letters(writable=True)
    selection = Selection(reasons=frozenset({"quota_exhausted", "user_mismatch"}))
    progress = Progress()
    await redrive(queue, ScriptedPublisher(), selection, harness.trusted_users, progress=progress)
    await queue.close()
    assert (progress.handled, progress.done) == (5, 3)


@pytest.mark.parametrize("harness", ["rabbitmq"], indirect=True)
async def test_remove_raises_broker_unavailable_if_the_connection_was_lost(harness: DeadLetterHarness) -> None:
    """Only RabbitMQ has connections."""
    await harness.publish([rejected_message(1)])
    queue = await harness.open_dead_letters()
    browsed = [delivery async for deliveries in queue.browse() for delivery in deliveries]
    assert isinstance(queue, RabbitDeadLetters)
    assert queue._consumer is not None
    await queue._consumer.close()
    with pytest.raises(BrokerUnavailable, match="still there"):
        await queue.remove(browsed)
    await queue.close()
    assert await harness.message_ids() == ["d1"]
