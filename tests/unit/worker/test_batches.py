"""A batch through the worker's cohorts on a real ledger: with and without keys, after a crash at each point."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ingest.admission import Admission, Request
from ingest.domain import admitted
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Entry, Phase
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.processor import DeliveryProcessor
from tests.support.direct_submissions import TASK
from tests.support.fakes import AckingConsumer, Clock, ScriptedPublisher

CUSTOMER = Customer(cust_id="c", monthly_quota=100)


class Unsettled(SqliteStore):
    """A store that goes away before anything is settled, until `back`."""

    back = False

    async def accept(self, entries: Sequence[Entry]) -> None:
        if not self.back:
            raise StoreUnavailable("away")
        await super().accept(entries)


class WorkerHarness:
    """A worker's parts, with a publisher that remembers."""

    def __init__(self, store: Unsettled, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.publisher = ScriptedPublisher()
        self.admission = Admission(store, clock=clock)
        self.consumer = AckingConsumer()
        self.failed: list[Delivery] = []
        """Of the last attempt."""
        self._cohorts = DeliveryProcessor(
            store, self.publisher, self.admission, DeliveryClassifier(store, frozenset({"shim"}))
        )

    async def attempt(self, delivery: Delivery) -> list[str]:
        """Ids of the events that were published."""
        self.publisher.sent.clear()
        self.failed = (await self._cohorts.attempt(self.consumer, [delivery])).unavailable
        return [message.message_id for message in self.publisher.sent]

    async def phases(self, submission: Submission) -> dict[str, Phase | None]:
        ids = list(dict.fromkeys([submission.id, *[task.task_id for task in submission.tasks]]))
        return {i: entry.phase if entry else None for i, entry in zip(ids, await self.store.read(ids), strict=True)}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[WorkerHarness]:
    clock = Clock()
    store = await Unsettled.open(tmp_path / "s.db", clock=clock)
    store.back = True
    await store.save_customer(CUSTOMER)
    yield WorkerHarness(store, clock)
    await store.close()


def body(*keys: str | None) -> dict[str, Any]:
    return {"tasks": [TASK | ({"idempotency_key": key} if key else {}) for key in keys]}


def batch(*keys: str | None) -> Submission:
    return batch_submission(body(*keys), "c", frozenset(), "b")


def delivery(raw: bytes, type_: str | None = None, *, redelivered: bool = False) -> Delivery:
    return Delivery(
        body=raw,
        queue="ingest.batches",
        routing_key="batch.submitted.c",
        message_id="b",
        content_type="application/json",
        user_id="shim" if type_ else "c",
        type=type_,
        headers={},
        redelivered=redelivered,
        deliveries=0,
        token=None,
    )


def direct(*keys: str | None, redelivered: bool = False) -> Delivery:
    return delivery(json.dumps(body(*keys)).encode(), redelivered=redelivered)


def from_shim(submission: Submission, created_at: int = 1_775_000_000_000, replayed: tuple[str, ...] = ()) -> Delivery:
    message: Message = admitted.to_message(Admitted(submission, created_at, 604_800, replayed))
    return delivery(message.body, admitted.TYPE)


def events_of(submission: Submission) -> list[str]:
    """Of a batch of which nothing is out."""
    ids = dict.fromkeys(task.task_id for task in submission.tasks)
    return [f"{id_}:accepted" for id_ in (*ids, submission.id)]


async def test_one_event_a_task_and_one_entry_a_key(harness: WorkerHarness) -> None:
    """Two items with one key are one task; items without keys leave no entries; the batch's event is last."""
    submission = batch(None, "x", None, "x")
    assert await harness.attempt(direct(None, "x", None, "x")) == events_of(submission)
    first, x, third = (task.task_id for task in submission.tasks[:3])
    wanted = {submission.id: Phase.ACCEPTED, first: None, x: Phase.ACCEPTED, third: None}
    assert await harness.phases(submission) == wanted
    assert await harness.store.used("c", "2026-03") == 3
    assert len(harness.consumer.acked) == 1


async def test_a_key_that_was_used_before(harness: WorkerHarness) -> None:
    """Its event is not repeated, it is told as a replay, and it is not charged."""
    single = task_submission(TASK, "c", frozenset(), "x")
    (decision,) = await harness.admission.admit([Request(single, CUSTOMER)])
    await harness.admission.accepted(decision.owned)
    submission = batch(None, "x")
    assert await harness.attempt(direct(None, "x")) == [
        f"{submission.tasks[0].task_id}:accepted",
        f"{submission.id}:accepted",
    ]
    assert json.loads(harness.publisher.sent[-1].body)["data"]["replayed_task_ids"] == [single.id]
    assert await harness.store.used("c", "2026-03") == 2


async def test_after_a_crash_with_the_claims_held(harness: WorkerHarness) -> None:
    """Claimed and charged by one that died: held back while the lease lasts, then the same events."""
    submission = batch(None, "x", None)
    await harness.admission.admit([Request(submission, CUSTOMER, "b")])
    assert await harness.attempt(direct(None, "x", None, redelivered=True)) == []
    assert harness.consumer.acked == []
    harness.clock.now += 31
    assert await harness.attempt(direct(None, "x", None, redelivered=True)) == events_of(submission)
    assert len(harness.consumer.acked) == 1


async def test_events_not_confirmed_are_sent_again_and_charged_once(harness: WorkerHarness) -> None:
    """The publish is in doubt: no ack, and the next attempt need not wait."""
    harness.publisher.outcome = PublishOutcome.UNKNOWN
    first = await harness.attempt(direct(None, "x", None))
    assert (first, harness.consumer.acked) == (events_of(batch(None, "x", None))[:-1], [])
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    assert await harness.attempt(direct(None, "x", None)) == events_of(batch(None, "x", None))
    assert await harness.store.used("c", "2026-03") == 3
    assert len(harness.consumer.acked) == 1


async def test_the_store_goes_away_before_settling(harness: WorkerHarness) -> None:
    """Events out, nothing settled, no ack; the next attempt repeats the same ids, charges nothing and settles."""
    harness.store.back = False
    assert await harness.attempt(direct(None, "x")) == events_of(batch(None, "x"))
    assert harness.consumer.acked == []
    harness.store.back = True
    assert await harness.attempt(direct(None, "x")) == events_of(batch(None, "x"))
    assert await harness.store.used("c", "2026-03") == 2
    assert Phase.CLAIMED not in (await harness.phases(batch(None, "x"))).values()


async def test_settled_but_not_acknowledged(harness: WorkerHarness) -> None:
    """Redelivered after the last step: nothing goes out a second time, not even a duplicate event."""
    await harness.attempt(direct(None, "x"))
    assert await harness.attempt(direct(None, "x", redelivered=True)) == []
    assert len(harness.consumer.acked) == 2


async def test_what_the_shim_admitted_survives_a_lost_ledger(harness: WorkerHarness) -> None:
    """No record is left: all events, and the records are made anew; the message once more: nothing."""
    submission = batch(None, "x", None)
    assert await harness.attempt(from_shim(submission)) == events_of(submission)
    (head,) = await harness.store.read([submission.id])
    assert head is not None
    assert (head.phase, head.task_ids) == (Phase.ACCEPTED, [task.task_id for task in submission.tasks])
    assert await harness.attempt(from_shim(submission)) == []


async def test_an_item_settled_before_its_batch_is_not_sent_again(harness: WorkerHarness) -> None:
    """A crash within settling: the keyed item is out and no replay, the rest comes again."""
    submission = batch(None, "x")
    (decision,) = await harness.admission.admit([Request(submission, CUSTOMER)])
    await harness.admission.queued([decision])
    await harness.admission.accepted(decision.owned[1:])
    assert await harness.attempt(from_shim(submission)) == [
        f"{submission.tasks[0].task_id}:accepted",
        f"{submission.id}:accepted",
    ]
    assert json.loads(harness.publisher.sent[-1].body)["data"]["replayed_task_ids"] == []


async def test_the_ledger_tells_what_went_out(harness: WorkerHarness) -> None:
    """A publish in doubt arrives after a retry with another body has been claimed: its items are the batch's."""
    first = batch(None, None, None)
    (decision,) = await harness.admission.admit([Request(first, CUSTOMER)])
    await harness.admission.release([decision], refund=False)
    await harness.admission.admit([Request(batch("x"), CUSTOMER)])
    assert await harness.attempt(from_shim(first)) == events_of(first)
    (head,) = await harness.store.read([first.id])
    assert head is not None
    assert (head.phase, head.fingerprint, head.task_ids) == (
        Phase.ACCEPTED,
        first.fingerprint,
        [task.task_id for task in first.tasks],
    )
    assert head.created_at == decision.entry.created_at


class InDoubt(Unsettled):
    """A store that settles, and loses the answer the first time."""

    lost = 0

    async def accept(self, entries: Sequence[Entry]) -> None:
        await super().accept(entries)
        if not self.lost:
            self.lost = 1
            raise StoreUnavailable("no answer")


async def test_a_submission_is_no_duplicate_of_itself(tmp_path: Path) -> None:
    """It was settled, though the answer was lost: the next attempt acknowledges it and tells nobody of a duplicate."""
    clock = Clock()
    store = await InDoubt.open(tmp_path / "s.db", clock=clock)
    store.back = True
    await store.save_customer(CUSTOMER)
    harness = WorkerHarness(store, clock)
    await harness.attempt(direct(None))
    (left,) = harness.failed
    assert harness.consumer.acked == []
    assert await harness.attempt(left) == []
    assert harness.failed == []
    assert len(harness.consumer.acked) == 1
    await store.close()
