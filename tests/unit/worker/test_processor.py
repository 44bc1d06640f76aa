"""One attempt at a micro-batch: what it publishes, acks and leaves unfinished, if some of its deliveries fail."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.admission import Request
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.ledger import Phase
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.fakes import Clock, ScriptedPublisher, UnreliableStore
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness

CUSTOMER = Customer(cust_id="c", monthly_quota=100)
MONTH = "2026-03"
"""The month of `Clock`."""
CONFIRMED, NACKED, UNKNOWN = PublishOutcome.CONFIRMED, PublishOutcome.NACKED, PublishOutcome.UNKNOWN


class SelectivePublisher(ScriptedPublisher):
    """Confirms every message, except those whose body contains a text in `failing`. `gate` holds all publishes."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: dict[str, PublishOutcome] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        self.sent += messages
        await self.gate.wait()
        return [self._outcome(message) for message in messages]

    def _outcome(self, message: Message) -> PublishOutcome:
        failing = [outcome for text, outcome in self.failing.items() if text in message.body.decode()]
        return failing[0] if failing else CONFIRMED


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[UnreliableStore]:
    store = await UnreliableStore.open(tmp_path / "s.db", clock=Clock())
    await store.save_customer(CUSTOMER)
    yield store
    await store.close()


@pytest.fixture
def publisher() -> SelectivePublisher:
    return SelectivePublisher()


@pytest.fixture
def harness(store: UnreliableStore, publisher: SelectivePublisher) -> ProcessorHarness:
    return ProcessorHarness(store, clock=Clock(), publisher=publisher)


def task(name: str) -> dict[str, object]:
    """A task whose events contain its name."""
    return TASK | {"data_url": f"https://a.example/{name}"}


async def admitted(harness: ProcessorHarness, submission: Submission) -> Delivery:
    """Admit a submission as the shim does; return its message."""
    (decision,) = await harness.admission.admit([Request(submission, CUSTOMER)])
    await harness.admission.queued([decision])
    return admitted_delivery(Admitted(submission, decision.entry.created_at, CUSTOMER.retention))


async def phase(store: SqliteStore, submission_id: str | None) -> Phase | None:
    (entry,) = await store.read([submission_id or ""])
    return entry.phase if entry else None


async def test_copy_of_a_submission_that_is_processed_now_waits_and_is_then_only_acked(
    harness: ProcessorHarness, publisher: SelectivePublisher
) -> None:
    """Two workers' copies would be harmless, but one worker publishes each event once."""
    first = await admitted(harness, task_submission(TASK, "c", frozenset(), "k"))
    copy = admitted_delivery(Admitted(task_submission(TASK, "c", frozenset(), "k"), 1_775_000_000_000, 60))
    publisher.gate.clear()
    attempt = asyncio.create_task(harness.processor.attempt(harness.consumer, [first]))
    while not publisher.sent:
        await asyncio.sleep(0)
    assert (await harness.processor.attempt(harness.consumer, [copy])).contended == [copy]
    assert harness.consumer.acked == []
    publisher.gate.set()
    assert not await attempt
    assert await harness.attempt(copy) == []
    assert harness.consumer.acked == [first, copy]


async def test_only_the_first_of_two_copies_in_a_micro_batch_is_published(harness: ProcessorHarness) -> None:
    """The second one is acked by the next attempt."""
    submission = task_submission(TASK, "c", frozenset(), "k")
    first = await admitted(harness, submission)
    copy = admitted_delivery(Admitted(submission, 1_775_000_000_000, 60))
    assert len(await harness.attempt(first, copy)) == 1
    assert (harness.unfinished.contended, harness.consumer.acked) == ([copy], [first])
    assert await harness.attempt(copy) == []
    assert not harness.unfinished


async def test_each_delivery_ends_as_its_own_messages_do(
    harness: ProcessorHarness, publisher: SelectivePublisher, store: UnreliableStore
) -> None:
    """One is accepted, the events of the others are refused or in doubt. The last one is an item of a batch."""
    accepted, refused, lost = (direct_delivery(name, task(name)) for name in ("accepted", "refused", "lost"))
    batch = direct_delivery("b", {"tasks": [task("first"), task("second")]})
    publisher.failing = {"/refused": NACKED, "/lost": UNKNOWN, "/second": PublishOutcome.UNSENT}
    await harness.attempt(refused, accepted, lost, batch)
    assert harness.consumer.acked == [accepted]
    unfinished = harness.unfinished
    assert [delivery.message_id for delivery in unfinished.refused] == ["refused"]
    assert [delivery.message_id for delivery in unfinished.unavailable] == ["lost", "b"]
    assert unfinished.contended == []
    assert await store.used("c", MONTH) == 5
    publisher.failing = {}
    await harness.attempt(*unfinished.deliveries)
    assert (bool(harness.unfinished), len(harness.consumer.acked)) == (False, 4)
    assert await store.used("c", MONTH) == 5


async def test_batch_whose_final_event_is_refused_is_neither_settled_nor_acked(
    harness: ProcessorHarness, publisher: SelectivePublisher, store: UnreliableStore
) -> None:
    """Its tasks' events are published again with it. Another batch of the same attempt is finished."""
    batches = [batch_submission({"tasks": [task(name)]}, "c", frozenset(), name) for name in ("refused", "accepted")]
    refused, accepted = [await admitted(harness, batch) for batch in batches]
    publisher.failing = {f'"subject":"{batches[0].id}"': NACKED}
    assert len(await harness.attempt(refused, accepted)) == 4
    assert [delivery.message_id for delivery in harness.unfinished.refused] == [refused.message_id]
    assert harness.consumer.acked == [accepted]
    assert [await phase(store, batch.id) for batch in batches] == [Phase.QUEUED, Phase.ACCEPTED]
    publisher.failing = {}
    assert len(await harness.attempt(refused)) == 2
    assert await phase(store, batches[0].id) is Phase.ACCEPTED


async def test_batch_with_an_unconfirmed_task_event_does_not_publish_its_final_event(
    harness: ProcessorHarness, publisher: SelectivePublisher
) -> None:
    batch = batch_submission({"tasks": [task("first"), task("second")]}, "c", frozenset(), "b")
    publisher.failing = {"/first": UNKNOWN}
    await harness.attempt(await admitted(harness, batch))
    assert [batch.id.encode() in message.message_id.encode() for message in publisher.sent] == [False, False]


async def test_rejection_that_cannot_be_published_is_kept_apart_from_refused_events(
    harness: ProcessorHarness, publisher: SelectivePublisher
) -> None:
    """The queue of dead letters is full. Moved to the end of its queue, it would be published in our name."""
    publisher.failing = {"wrong": NACKED, "/refused": NACKED}
    wrong, refused = direct_delivery("wrong", {"type": "wrong"}), direct_delivery("k", task("refused"))
    await harness.attempt(wrong, refused)
    assert (harness.unfinished.rejected, harness.unfinished.contended) == ([wrong], [])
    assert [delivery.message_id for delivery in harness.unfinished.refused] == ["k"]


async def test_refusals_are_logged_for_each_customer_with_their_destination(
    harness: ProcessorHarness, publisher: SelectivePublisher, store: UnreliableStore
) -> None:
    """What is in doubt is logged apart, because it may be an outage."""
    await store.save_customer(Customer(cust_id="d"))
    names = ("nack1", "nack2", "lost")
    own = [direct_delivery(name, TASK | {"data_url": f"https://a.example/{name}"}) for name in names]
    other = direct_delivery("large", TASK | {"data_url": "https://a.example/large"}, cust_id="d")
    publisher.failing = {"nack": NACKED, "lost": UNKNOWN, "large": PublishOutcome.TOO_LARGE}
    with capture_logs() as logs:
        await harness.attempt(*own, other)
    common = {"log_level": "warning", "exchange": "asg.events", "routing_key": "task.accepted.sentiment.none"}
    assert [log for log in logs if log["event"].startswith("publish_")] == [
        {"event": "publish_unconfirmed", "log_level": "warning", "outcomes": {"unknown": 1}},
        {"event": "publish_refused", "cust_id": "c", "submissions": 2, "outcome": "nacked"} | common,
        {"event": "publish_refused", "cust_id": "d", "submissions": 1, "outcome": "too_large"} | common,
    ]


async def test_delivery_that_was_not_finished_counts_as_redelivered(
    harness: ProcessorHarness, publisher: SelectivePublisher
) -> None:
    """Its submission may be settled, so the next attempt must not take it for its own duplicate."""
    publisher.failing = {"/refused": NACKED, "/lost": UNKNOWN}
    await harness.attempt(direct_delivery("1", task("refused")), direct_delivery("2", task("lost")))
    assert [delivery.redelivered for delivery in harness.unfinished.deliveries] == [True, True]


async def test_submission_is_not_acked_if_the_ledger_does_not_settle(
    harness: ProcessorHarness, store: UnreliableStore
) -> None:
    """A failing settle leaves the claims released: the next attempt does not wait for the lease and charges nothing.

    A rejection has nothing to settle.
    """
    store.can_settle = False
    wrong = direct_delivery("wrong", {})
    await harness.attempt(direct_delivery("k", TASK), wrong)
    assert {delivery.message_id for delivery in harness.unfinished.unavailable} == {"k"}
    assert harness.consumer.acked == [wrong]
    store.can_settle = True
    await harness.attempt(*harness.unfinished.unavailable)
    assert (bool(harness.unfinished), await store.used("c", MONTH)) == (False, 1)


async def test_moved_deliveries_are_acked_and_the_others_returned(
    harness: ProcessorHarness, publisher: SelectivePublisher
) -> None:
    moved, kept = direct_delivery("moved", task("moved")), direct_delivery("kept", task("kept"))
    publisher.failing = {"/kept": UNKNOWN}
    assert await harness.processor.move_to_end(harness.consumer, [moved, kept]) == [kept]
    assert harness.consumer.acked == [moved]
    assert [(message.message_id, message.body) for message in publisher.sent] == [
        ("moved", moved.body),
        ("kept", kept.body),
    ]


TRACEPARENT = f"00-{'1' * 32}-{'2' * 16}-01"


async def test_trace_of_a_delivery_is_in_all_its_messages_and_in_no_others(
    harness: ProcessorHarness, publisher: SelectivePublisher
) -> None:
    """The events of a batch, its final event, a dead letter and its event."""
    headers = {"traceparent": TRACEPARENT}
    await harness.attempt(
        direct_delivery("b", {"tasks": [task("traced"), task("traced-2")]}, headers=headers),
        direct_delivery("wrong", {}, headers=headers),
        direct_delivery("k", task("untraced"), headers={"other": 1}),
    )
    traced = [message for message in publisher.sent if message.headers.get("traceparent") == TRACEPARENT]
    assert len(traced) == 5
    (untraced,) = [message for message in publisher.sent if message not in traced]
    assert b"/untraced" in untraced.body
