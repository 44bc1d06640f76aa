"""Direct submissions whose webhook or customer is removed after they were admitted."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from ingest.admission import DEFAULT_LEASE, Request
from ingest.domain.customers import Customer
from ingest.domain.messages import PublishOutcome
from ingest.domain.submissions import task_submission
from ingest.store.sqlite import SqliteStore
from tests.support.deliveries import direct_delivery
from tests.support.fakes import Clock
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness

HOOK = "https://a.example/hook"
CUSTOMER = Customer(cust_id="c", monthly_quota=10, webhooks=frozenset({HOOK}))
TASK_WITH_HOOK = TASK | {"callback_url": HOOK}
BATCH_WITH_HOOK = {"tasks": [TASK, TASK], "callback_url": HOOK}
MONTH = "2026-03"
"""The month of `Clock`."""


class StoreWithoutCustomers(SqliteStore):
    """A store that can lose its customers."""

    has_customers = True

    async def customer(self, cust_id: str) -> Customer | None:
        return await super().customer(cust_id) if self.has_customers else None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[StoreWithoutCustomers]:
    store = await StoreWithoutCustomers.open(tmp_path / "s.db", clock=clock)
    await store.save_customer(CUSTOMER)
    yield store
    await store.close()


@pytest.fixture
def harness(store: StoreWithoutCustomers, clock: Clock) -> ProcessorHarness:
    return ProcessorHarness(store, clock=clock)


@pytest.fixture(params=["webhook", "customer"])
def removed(request: pytest.FixtureRequest) -> str:
    """What is removed."""
    return str(request.param)


async def remove(removed: str, store: StoreWithoutCustomers, clock: Clock) -> None:
    if removed == "webhook":
        await store.save_customer(msgspec.structs.replace(CUSTOMER, webhooks=frozenset()))
    else:
        store.has_customers = False
    clock.now += 3  # the classifier caches customers


@pytest.mark.parametrize("body", [TASK_WITH_HOOK, BATCH_WITH_HOOK])
async def test_redelivery_of_an_accepted_submission_is_only_acked(
    harness: ProcessorHarness, store: StoreWithoutCustomers, clock: Clock, removed: str, body: dict[str, object]
) -> None:
    await harness.attempt(direct_delivery("k", body))
    await remove(removed, store, clock)
    assert await harness.attempt(direct_delivery("k", body, redelivered=True)) == []
    assert len(harness.consumer.acked) == 2


@pytest.mark.parametrize("body", [TASK_WITH_HOOK, BATCH_WITH_HOOK])
async def test_submission_that_was_admitted_before_is_accepted(
    harness: ProcessorHarness, store: StoreWithoutCustomers, clock: Clock, removed: str, body: dict[str, object]
) -> None:
    """Its events may have reached one of their queues already."""
    harness.publisher.outcome = PublishOutcome.NACKED
    await harness.attempt(direct_delivery("k", body))
    await remove(removed, store, clock)
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    assert ":accepted:" in (await harness.attempt(direct_delivery("k", body, redelivered=True)))[-1]
    assert await store.used("c", MONTH) == len(body.get("tasks", [TASK]))  # type: ignore[arg-type]


@pytest.mark.parametrize("message_id", ["k", "other"])
async def test_submission_that_was_not_admitted_before_is_rejected(
    harness: ProcessorHarness, store: StoreWithoutCustomers, clock: Clock, removed: str, message_id: str
) -> None:
    """Neither another body under a used message_id, nor a new message_id."""
    await harness.attempt(direct_delivery("k", TASK))
    await remove(removed, store, clock)
    dead, _ = await harness.attempt(direct_delivery(message_id, TASK_WITH_HOOK, redelivered=True))
    assert dead.startswith("dead:")


async def test_submission_that_a_crashed_attempt_may_have_published_is_accepted_without_its_customer(
    harness: ProcessorHarness, store: StoreWithoutCustomers, clock: Clock
) -> None:
    """Its events may be out. It is charged again, because the first charge is not recorded."""
    submission = task_submission(TASK, "c", frozenset(), "k")
    await harness.admission.admit([Request(submission, CUSTOMER, origin="k")])
    await remove("customer", store, clock)
    clock.now += DEFAULT_LEASE
    (event,) = await harness.attempt(direct_delivery("k", TASK, redelivered=True))
    assert ":accepted:" in event
    assert await store.used("c", MONTH) == 2


async def test_submission_whose_key_only_an_unfinished_request_over_http_has_claimed_is_rejected(
    harness: ProcessorHarness, store: StoreWithoutCustomers, clock: Clock, removed: str
) -> None:
    """It was never admitted itself, although the body is the same."""
    submission = task_submission(TASK_WITH_HOOK, "c", CUSTOMER.webhooks, "k")
    await harness.admission.release(await harness.admission.admit([Request(submission, CUSTOMER)]), refund=False)
    await remove(removed, store, clock)
    dead, _ = await harness.attempt(direct_delivery("k", TASK_WITH_HOOK))
    assert dead.startswith("dead:")
