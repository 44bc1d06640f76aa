"""Submissions that another attempt has left in doubt, and repeats of a key with another body."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.admission import DOUBT, Decision, Request, Verdict
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.ledger import Change, Entry, Step
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.submissions import batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.fakes import Clock, used
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness

CUSTOMER = Customer(cust_id="c", monthly_quota=100)
OTHER: dict[str, Any] = TASK | {"data_url": "https://a.example/other"}


async def leave_in_doubt(harness: ProcessorHarness, body: dict[str, Any]) -> Delivery:
    """Admit a task as the shim does, without an answer to its publish; return its message, which arrives late."""
    submission = task_submission(body, "c", frozenset(), "k")
    decisions = await harness.admission.admit([Request(submission, CUSTOMER)])
    await harness.admission.release(decisions, refund=False)
    return admitted_delivery(Admitted(submission, decisions[0].entry.created_at, CUSTOMER.retention))


async def test_redelivery_with_another_body_is_reported_as_a_mismatch(harness: ProcessorHarness) -> None:
    """A lost connection makes it a redelivery. It must not be taken for the message that was accepted."""
    await harness.attempt(direct_delivery("k"))
    (event,) = await harness.attempt(direct_delivery("k", OTHER, redelivered=True))
    assert ":duplicate:" in event
    assert json.loads(harness.publisher.sent[0].body)["data"]["payload_mismatch"] is True


async def test_key_is_remembered_until_its_retention_has_passed_since_the_acceptance(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock
) -> None:
    """The message waits in its queue for longer than the retention, and its client was answered 202."""
    brief = Customer(cust_id="c", retention=60)
    first, other = (Request(task_submission(body, "c", frozenset(), "k"), brief) for body in (TASK, OTHER))
    (admitted,) = await harness.admission.admit([first])
    await harness.admission.queued([admitted])
    clock.now += 61
    (repeated,) = await harness.admission.admit([other])
    assert repeated.verdict is Verdict.REPLAY
    assert repeated.mismatch
    message = Admitted(first.submission, admitted.entry.created_at, brief.retention)
    (event,) = await harness.attempt(admitted_delivery(message))
    assert ":accepted:" in event
    assert await used(store) == 1
    clock.now += 61
    (renewed,) = await harness.admission.admit([other])
    assert renewed.verdict is Verdict.ADMITTED


async def test_message_that_arrives_after_its_refund_is_charged_again(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock
) -> None:
    message = await leave_in_doubt(harness, TASK)
    clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    assert await used(store) == 0
    (event,) = await harness.attempt(message)
    assert ":accepted:" in event
    assert await used(store) == 1


async def test_refunded_submission_is_charged_again_even_if_an_attempt_crashed_after_its_claim(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock
) -> None:
    message = await leave_in_doubt(harness, TASK)
    clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    (entry,) = await store.read([message.message_id or ""])
    assert entry is not None
    await store.apply([Change(Step.TAKE_OVER, msgspec.structs.replace(entry, owner="crashed", lease=30_000))])
    assert await harness.attempt(message) == []
    clock.now += 30
    (event,) = await harness.attempt(message)
    assert (":accepted:" in event, await used(store)) == (True, 1)


async def test_message_is_kept_if_its_entry_becomes_queued_while_it_is_admitted_again(
    tmp_path: Path, clock: Clock
) -> None:
    """A refunded key is used again. The worker receives the message before the shim has recorded the confirm."""

    class QueuedBeforeClaim(SqliteStore):
        async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
            if confirmed:
                await harness.admission.queued(confirmed)
            return await super().claim(entries)

    confirmed: list[Decision] = []
    store = await QueuedBeforeClaim.open(tmp_path / "q.db", clock=clock)
    harness = ProcessorHarness(store, clock=clock)
    await leave_in_doubt(harness, TASK)
    clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    submission = task_submission(TASK, "c", frozenset(), "k")
    confirmed = await harness.admission.admit([Request(submission, CUSTOMER)])
    message = Admitted(submission, confirmed[0].entry.created_at, CUSTOMER.retention)
    await harness.attempt(admitted_delivery(message))
    confirmed = []
    assert harness.consumer.acked == []
    (event,) = await harness.attempt(admitted_delivery(message))
    assert ":accepted:" in event
    assert await used(store) == 1
    await store.close()


async def test_superseded_batch_with_a_refunded_item_is_only_acked(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock
) -> None:
    """Its key was used again with another body, without the item."""
    body = {"tasks": [TASK | {"idempotency_key": "i"}, TASK]}
    submission = batch_submission(body, "c", frozenset(), "k")
    decisions = await harness.admission.admit([Request(submission, CUSTOMER)])
    await harness.admission.release(decisions, refund=False)
    clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    await harness.attempt(direct_delivery("k", {"tasks": [OTHER]}))
    message = admitted_delivery(Admitted(submission, decisions[0].entry.created_at, CUSTOMER.retention))
    assert await harness.attempt(message) == []
    assert message in harness.consumer.acked
    assert await used(store) == 1


async def test_direct_submission_whose_events_may_be_published_keeps_its_charge_and_its_key(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock
) -> None:
    """One of two queues has taken its event. Its message moves to the end of a queue with a long backlog."""
    harness.publisher.outcome = PublishOutcome.NACKED
    await harness.attempt(direct_delivery("k"))
    clock.now += 2 * DOUBT
    assert await harness.admission.refund_doubts() == 0
    other = Request(task_submission(OTHER, "c", frozenset(), "k"), CUSTOMER)
    (decision,) = await harness.admission.admit([other])
    assert decision.verdict is Verdict.CONTENDED
    await store.save_customer(msgspec.structs.replace(CUSTOMER, monthly_quota=1))
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    (event,) = await harness.attempt(direct_delivery("k"))
    assert ":accepted:" in event
    assert await used(store) == 1


@pytest.mark.parametrize("entry_is_lost", [False, True])
async def test_batch_does_not_settle_its_item_for_another_submission(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock, entry_is_lost: bool
) -> None:
    """The item's charge was refunded, or its entry was lost; a single task used its key with another body.

    If the entry was lost, the client of the batch may have been answered 202, so both bodies are published.
    """
    item = TASK | {"idempotency_key": "i"}
    batch = Request(batch_submission({"tasks": [item]}, "c", frozenset(), "k"), CUSTOMER)
    single = Request(task_submission(OTHER | {"idempotency_key": "i"}, "c", frozenset(), None), CUSTOMER)
    decisions = await harness.admission.admit([batch])
    await harness.admission.release(decisions, refund=False)
    if entry_is_lost:
        (entry,) = await store.read([single.submission.id])
        assert entry is not None
        await store.apply([Change(Step.FORGET, entry)])
    clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    (decision,) = await harness.admission.admit([single])
    await harness.admission.queued([decision])
    message = Admitted(batch.submission, decisions[0].entry.created_at, CUSTOMER.retention)
    batch_events = await harness.attempt(admitted_delivery(message))
    assert len(batch_events) == (2 if entry_is_lost else 1)
    message = Admitted(single.submission, decision.entry.created_at, CUSTOMER.retention)
    (event,) = await harness.attempt(admitted_delivery(message))
    assert event not in batch_events
    assert json.loads(harness.publisher.sent[0].body)["data"]["data_url"] == OTHER["data_url"]
    assert await used(store) == (2 if entry_is_lost else 1)


async def test_batch_does_not_make_its_item_durable_for_another_submission(
    harness: ProcessorHarness, clock: Clock
) -> None:
    """A single task has taken the item's key over with another body, and its own publish failed."""
    item = TASK | {"idempotency_key": "i"}
    batch = Request(batch_submission({"tasks": [item]}, "c", frozenset(), "k"), CUSTOMER)
    single = Request(task_submission(OTHER | {"idempotency_key": "i"}, "c", frozenset(), None), CUSTOMER)
    decisions = await harness.admission.admit([batch])
    await harness.admission.release(decisions, refund=False)
    clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    await harness.admission.release(await harness.admission.admit([single]), refund=False)
    message = Admitted(batch.submission, decisions[0].entry.created_at, CUSTOMER.retention)
    await harness.attempt(admitted_delivery(message))
    (retry,) = await harness.admission.admit([single])
    assert retry.verdict is Verdict.ADMITTED


@pytest.mark.parametrize("other_is_accepted", [False, True])
async def test_submission_whose_entry_was_lost_is_accepted_although_its_key_was_used_again(
    harness: ProcessorHarness, store: SqliteStore, other_is_accepted: bool, clock: Clock
) -> None:
    """Both clients were answered 202. Their times tell the entries apart."""
    messages = []
    for body in (TASK, OTHER):
        submission = task_submission(body, "c", frozenset(), "k")
        (decision,) = await harness.admission.admit([Request(submission, CUSTOMER)])
        await harness.admission.queued([decision])
        messages.append(admitted_delivery(Admitted(submission, decision.entry.created_at, CUSTOMER.retention)))
        if body == TASK:
            clock.now += 1
            (entry,) = await store.read([submission.id])
            assert entry is not None
            await store.apply([Change(Step.FORGET, entry)])
    first, other = messages
    accepted = await harness.attempt(other) if other_is_accepted else []
    (event,) = await harness.attempt(first)
    assert json.loads(harness.publisher.sent[0].body)["data"]["data_url"] == TASK["data_url"]
    accepted += await harness.attempt(other)
    assert len({event, *accepted}) == 2
    assert await used(store) == 2


async def test_batch_is_charged_again_for_an_item_that_was_refunded_to_another_submission(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock
) -> None:
    """A single task with the item's key takes the claim over, and its publish fails. Then the batch arrives."""
    item = TASK | {"idempotency_key": "i"}
    batch = Request(batch_submission({"tasks": [item]}, "c", frozenset(), "k"), CUSTOMER)
    single = Request(task_submission(item, "c", frozenset(), None), CUSTOMER)
    decisions = [*await harness.admission.admit([batch])]
    await harness.admission.release(decisions, refund=False)
    await harness.admission.release(await harness.admission.admit([single]), refund=False)
    clock.now += DOUBT / 2
    assert await harness.admission.refund_doubts() == 1
    message = Admitted(batch.submission, decisions[0].entry.created_at, CUSTOMER.retention)
    task_event, batch_event = await harness.attempt(admitted_delivery(message))
    assert task_event.startswith("tsk_")
    assert batch_event.startswith("bat_")
    assert await used(store) == 1


async def test_charge_is_not_refunded_while_its_message_is_processed(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock
) -> None:
    """The message arrives when the doubt has lasted half an hour."""
    message = await leave_in_doubt(harness, TASK)
    clock.now += DOUBT / 2
    harness.publisher.outcome = PublishOutcome.UNKNOWN
    await harness.attempt(message)
    assert await harness.admission.refund_doubts() == 0
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    await harness.attempt(message)
    assert await used(store) == 1


async def test_message_that_arrives_after_another_body_took_over_is_dropped(
    harness: ProcessorHarness, clock: Clock
) -> None:
    """Its client was answered 503, and the other client 202."""
    late = await leave_in_doubt(harness, TASK)
    clock.now += DOUBT
    message = await leave_in_doubt(harness, OTHER)
    assert await harness.attempt(late) == []
    assert late in harness.consumer.acked
    (event,) = await harness.attempt(message)
    assert ":accepted:" in event
    assert json.loads(harness.publisher.sent[0].body)["data"]["data_url"] == OTHER["data_url"]


@pytest.mark.parametrize("outcome", [PublishOutcome.NACKED, PublishOutcome.UNROUTABLE, PublishOutcome.TOO_LARGE])
async def test_refused_event_is_not_an_outage(harness: ProcessorHarness, outcome: PublishOutcome) -> None:
    harness.publisher.outcome = outcome
    await harness.attempt(direct_delivery("k"))
    assert harness.unavailable == []
    assert harness.consumer.acked == []
