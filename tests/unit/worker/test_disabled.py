"""Submissions of a customer that an operator disables."""

import msgspec
import pytest

from ingest.admission import DOUBT, Request
from ingest.domain.customers import Customer
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.submissions import batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from ingest.worker.customers import CUSTOMER_CACHE
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.fakes import Clock, used
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness

CUSTOMER = Customer(cust_id="c", monthly_quota=10)
BATCH = {"tasks": [TASK, TASK]}


async def disable(store: SqliteStore, clock: Clock, *, disabled: bool = True) -> None:
    await store.save_customer(msgspec.structs.replace(CUSTOMER, disabled=disabled))
    clock.now += CUSTOMER_CACHE


def reasons(messages: list[Message]) -> list[str]:
    """Return the reasons in the routing keys of dead letters."""
    return [message.routing_key for message in messages if message.routing_key.startswith("rejected.")]


@pytest.mark.parametrize("body", [TASK, BATCH])
async def test_direct_submission_is_rejected_until_the_customer_is_enabled(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock, body: dict[str, object]
) -> None:
    await disable(store, clock)
    await harness.attempt(direct_delivery("k", body))
    assert reasons(harness.publisher.sent) == ["rejected.customer_disabled"]
    assert await used(store) == 0
    await disable(store, clock, disabled=False)
    assert ":accepted:" in (await harness.attempt(direct_delivery("k", body)))[-1]


async def test_direct_replay_is_rejected(harness: ProcessorHarness, store: SqliteStore, clock: Clock) -> None:
    await harness.attempt(direct_delivery("k"))
    await disable(store, clock)
    await harness.attempt(direct_delivery("k"))
    assert reasons(harness.publisher.sent) == ["rejected.customer_disabled"]


async def test_redelivery_of_an_accepted_direct_submission_is_only_acked(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock
) -> None:
    await harness.attempt(direct_delivery("k"))
    await disable(store, clock)
    assert await harness.attempt(direct_delivery("k", redelivered=True)) == []
    assert len(harness.consumer.acked) == 2


@pytest.mark.parametrize("body", [TASK, BATCH])
async def test_direct_submission_whose_events_are_in_doubt_is_accepted(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock, body: dict[str, object]
) -> None:
    harness.publisher.outcome = PublishOutcome.NACKED
    await harness.attempt(direct_delivery("k", body))
    await disable(store, clock)
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    assert ":accepted:" in (await harness.attempt(direct_delivery("k", body, redelivered=True)))[-1]


@pytest.mark.parametrize("refunded", [False, True])
@pytest.mark.parametrize("body", [TASK, BATCH])
async def test_submission_that_the_shim_admitted_is_accepted(
    harness: ProcessorHarness, store: SqliteStore, clock: Clock, body: dict[str, object], refunded: bool
) -> None:
    """It was answered 202. If its charge was taken back, because its confirm came late, it is charged again."""
    submit = batch_submission if "tasks" in body else task_submission
    submission = submit(body, "c", frozenset(), "k")
    (decision,) = await harness.admission.admit([Request(submission, CUSTOMER)])
    delivery = admitted_delivery(decision.admitted)
    if refunded:
        await harness.admission.release([decision], refund=False)
        clock.now += DOUBT / 2
        assert await harness.admission.refund_doubts() == 1
    else:
        await harness.admission.queued([decision])
    await disable(store, clock)
    assert ":accepted:" in (await harness.attempt(delivery))[-1]
    assert await used(store) == len(submission.tasks)
