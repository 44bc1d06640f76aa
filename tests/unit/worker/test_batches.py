"""Attempts at a batch on a real ledger: with and without keys, and after a crash or an outage at each step."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ingest.admission import Request
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.events import acceptance_id
from ingest.domain.ledger import Phase
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.fakes import Clock, UnreliableStore
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness

CUSTOMER = Customer(cust_id="c", monthly_quota=100)
MONTH = "2026-03"
"""The month of `Clock`."""
CREATED_AT = 1_775_000_000_000
"""The time of `Clock` when a test begins, in Unix milliseconds."""


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[UnreliableStore]:
    store = await UnreliableStore.open(tmp_path / "s.db", clock=clock)
    await store.save_customer(CUSTOMER)
    yield store
    await store.close()


def body(*keys: str | None) -> dict[str, Any]:
    return {"tasks": [TASK | ({"idempotency_key": key} if key else {}) for key in keys]}


def batch(*keys: str | None) -> Submission:
    """The submission that `direct` delivers."""
    return batch_submission(body(*keys), "c", frozenset(), "b")


def direct(*keys: str | None, redelivered: bool = False) -> Delivery:
    """A delivery of a direct batch whose items have these keys."""
    return direct_delivery("b", body(*keys), redelivered=redelivered)


def from_shim(submission: Submission) -> Delivery:
    return admitted_delivery(Admitted(submission, CREATED_AT, 604_800))


def events_of(submission: Submission) -> list[str]:
    """The ids of all events of a batch, in the order in which they are published."""
    ids = dict.fromkeys(task.task_id for task in submission.tasks)
    return [acceptance_id(submission_id, CREATED_AT) for submission_id in (*ids, submission.id)]


async def phases(store: SqliteStore, submission: Submission) -> dict[str, Phase | None]:
    ids = list(dict.fromkeys([submission.id, *[task.task_id for task in submission.tasks]]))
    entries = await store.read(ids)
    return {entry_id: entry.phase if entry else None for entry_id, entry in zip(ids, entries, strict=True)}


async def test_batch_publishes_one_event_per_task_and_leaves_one_entry_per_key(
    harness: ProcessorHarness, store: UnreliableStore
) -> None:
    """Two items with one key are one task; items without keys do not leave entries; the batch's event is last."""
    submission = batch(None, "x", None, "x")
    assert await harness.attempt(direct(None, "x", None, "x")) == events_of(submission)
    first, keyed, third = (task.task_id for task in submission.tasks[:3])
    assert await phases(store, submission) == {
        submission.id: Phase.ACCEPTED,
        first: None,
        keyed: Phase.ACCEPTED,
        third: None,
    }
    assert await store.used("c", MONTH) == 3
    assert len(harness.consumer.acked) == 1


async def test_item_whose_key_was_used_is_reported_as_replayed_and_not_charged(
    harness: ProcessorHarness, store: UnreliableStore
) -> None:
    single = task_submission(TASK, "c", frozenset(), "x")
    (decision,) = await harness.admission.admit([Request(single, CUSTOMER)])
    await harness.admission.accepted(decision.owned)
    submission = batch(None, "x")
    assert await harness.attempt(direct(None, "x")) == [
        acceptance_id(submission.tasks[0].task_id, CREATED_AT),
        acceptance_id(submission.id, CREATED_AT),
    ]
    assert json.loads(harness.publisher.sent[-1].body)["data"]["replayed_task_ids"] == [single.id]
    assert await store.used("c", MONTH) == 2


async def test_batch_of_a_crashed_worker_is_held_until_its_lease_ends(harness: ProcessorHarness, clock: Clock) -> None:
    """After the lease, the same events are published."""
    submission = batch(None, "x", None)
    await harness.admission.admit([Request(submission, CUSTOMER, "b")])
    assert await harness.attempt(direct(None, "x", None, redelivered=True)) == []
    assert harness.consumer.acked == []
    clock.now += 31
    assert await harness.attempt(direct(None, "x", None, redelivered=True)) == events_of(submission)
    assert len(harness.consumer.acked) == 1


async def test_unconfirmed_events_are_published_again_and_charged_once(
    harness: ProcessorHarness, store: UnreliableStore
) -> None:
    """An unconfirmed batch is not acked, and the next attempt does not wait for the lease."""
    harness.publisher.outcome = PublishOutcome.UNKNOWN
    first = await harness.attempt(direct(None, "x", None))
    assert (first, harness.consumer.acked) == (events_of(batch(None, "x", None))[:-1], [])
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    assert await harness.attempt(direct(None, "x", None)) == events_of(batch(None, "x", None))
    assert await store.used("c", MONTH) == 3
    assert len(harness.consumer.acked) == 1


async def test_batch_that_could_not_be_settled_publishes_the_same_events_and_is_charged_once(
    harness: ProcessorHarness, store: UnreliableStore
) -> None:
    store.can_settle = False
    assert await harness.attempt(direct(None, "x")) == events_of(batch(None, "x"))
    assert harness.consumer.acked == []
    store.can_settle = True
    assert await harness.attempt(direct(None, "x")) == events_of(batch(None, "x"))
    assert await store.used("c", MONTH) == 2
    assert Phase.CLAIMED not in (await phases(store, batch(None, "x"))).values()


async def test_redelivered_batch_that_was_settled_publishes_nothing(harness: ProcessorHarness) -> None:
    """Not even a duplicate event."""
    await harness.attempt(direct(None, "x"))
    assert await harness.attempt(direct(None, "x", redelivered=True)) == []
    assert len(harness.consumer.acked) == 2


async def test_admitted_batch_whose_entries_were_lost_is_accepted_once(
    harness: ProcessorHarness, store: UnreliableStore
) -> None:
    """Its entries are written again, so that a second copy of the shim's message publishes nothing."""
    submission = batch(None, "x", None)
    assert await harness.attempt(from_shim(submission)) == events_of(submission)
    (entry,) = await store.read([submission.id])
    assert entry is not None
    assert (entry.phase, entry.task_ids) == (Phase.ACCEPTED, [task.task_id for task in submission.tasks])
    assert await harness.attempt(from_shim(submission)) == []


async def test_item_that_was_settled_before_its_batch_is_not_published_again(harness: ProcessorHarness) -> None:
    """A worker crashed while it settled. The keyed item is accepted, but it is not a replay."""
    submission = batch(None, "x")
    (decision,) = await harness.admission.admit([Request(submission, CUSTOMER)])
    await harness.admission.queued([decision])
    await harness.admission.accepted(decision.owned[1:])
    assert await harness.attempt(from_shim(submission)) == [
        acceptance_id(submission.tasks[0].task_id, CREATED_AT),
        acceptance_id(submission.id, CREATED_AT),
    ]
    assert json.loads(harness.publisher.sent[-1].body)["data"]["replayed_task_ids"] == []


async def test_ledger_describes_the_published_batch_even_if_a_retry_changed_the_body(
    harness: ProcessorHarness, store: UnreliableStore
) -> None:
    """A message in doubt arrives after a retry with another body has claimed the key."""
    first = batch(None, None, None)
    (decision,) = await harness.admission.admit([Request(first, CUSTOMER)])
    await harness.admission.release([decision], refund=False)
    await harness.admission.admit([Request(batch("x"), CUSTOMER)])
    assert await harness.attempt(from_shim(first)) == events_of(first)
    (entry,) = await store.read([first.id])
    assert entry is not None
    assert (entry.phase, entry.fingerprint, entry.task_ids) == (
        Phase.ACCEPTED,
        first.fingerprint,
        [task.task_id for task in first.tasks],
    )
    assert entry.created_at == decision.entry.created_at


async def test_submission_settled_without_an_answer_is_not_a_duplicate_of_itself(
    harness: ProcessorHarness, store: UnreliableStore
) -> None:
    store.loses_answer = True
    await harness.attempt(direct(None))
    (unfinished,) = harness.unavailable
    assert harness.consumer.acked == []
    store.loses_answer = False
    assert await harness.attempt(unfinished) == []
    assert harness.unavailable == []
    assert len(harness.consumer.acked) == 1
