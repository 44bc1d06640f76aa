"""What the worker counts, on a real ledger: each submission once, however many attempts it needs."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.admission import Request
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.errors import Reason
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.submissions import task_submission
from ingest.store.sqlite import SqliteStore
from ingest.telemetry.prometheus import PrometheusMeter
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness
from tests.unit.telemetry.test_metrics import samples


class OutcomesHarness(ProcessorHarness):
    """A processor with a meter."""

    def __init__(self, store: SqliteStore, *, clock: Callable[[], float] = time.time) -> None:
        self.meter = PrometheusMeter()
        self._store = store
        super().__init__(store, clock=clock, meter=self.meter)

    async def used(self) -> int:
        """Return how many tasks the customer `c` was charged in the months of `Clock`."""
        return sum([await self._store.used("c", month) for month in ("2026-03", "2026-04")])

    def counted(self, name: str) -> dict[str, float]:
        """The series of a metric that are not 0: label values, sorted by label and joined with commas, to value."""
        return {
            ",".join(value for _, value in sorted(labels) if value): count
            for (metric, labels), count in samples(self.meter.registry).items()
            if metric == name and count
        }


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[OutcomesHarness]:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.save_customer(Customer(cust_id="c", monthly_quota=6))
    await store.save_customer(Customer(cust_id="strict", strict=True))
    yield OutcomesHarness(store)
    await store.close()


def from_shim(key: str, created_at: float, body: dict[str, Any] = TASK) -> Delivery:
    submission = task_submission(body | {"idempotency_key": key}, "c", frozenset())
    return admitted_delivery(Admitted(submission, int(created_at * 1000), 86_400))


SUBMISSIONS, TASKS, AGES = "ingest_submissions_total", "ingest_accepted_tasks_total", "ingest_acceptance_age_seconds"


def test_every_rejection_reason_has_a_series_before_the_first_rejection(harness: OutcomesHarness) -> None:
    """Without the series, the first rejection would not have a rate and would not trigger an alert."""
    counted = samples(harness.meter.registry)
    for reason in Reason:
        labels = {"door": "amqp", "kind": "task", "outcome": "rejected", "reason": str(reason)}
        assert counted[SUBMISSIONS, frozenset(labels.items())] == 0


async def test_direct_submissions_are_counted_by_outcome_and_reason(harness: OutcomesHarness) -> None:
    other = TASK | {"consensus_threshold": 5}
    await harness.attempt(
        direct_delivery("1"),
        direct_delivery("2"),
        direct_delivery("", {}),
        direct_delivery("3", {}),
        direct_delivery("4", cust_id="unknown"),
    )
    await harness.attempt(direct_delivery("1"), direct_delivery("2", other), direct_delivery("s", cust_id="strict"))
    await harness.attempt(direct_delivery("s", other, cust_id="strict"), direct_delivery("5"))
    await harness.attempt(direct_delivery("b", {"tasks": [TASK] * 3}))
    await harness.attempt(direct_delivery("6"))
    assert harness.counted(SUBMISSIONS) == {
        "amqp,task,accepted": 4,
        "amqp,batch,accepted": 1,
        "amqp,task,duplicate": 2,
        "amqp,task,rejected,missing_message_id": 1,
        "amqp,task,rejected,invalid": 1,
        "amqp,task,rejected,unknown_customer": 1,
        "amqp,task,rejected,key_conflict": 1,
        "amqp,task,rejected,quota_exhausted": 1,
    }
    assert harness.counted("ingest_payload_mismatches_total") == {"amqp": 2}
    assert harness.counted(TASKS) == {"amqp": 7}
    assert harness.counted(f"{AGES}_count") == {"amqp,task": 4, "amqp,batch": 1}


async def test_admitted_submissions_are_counted_once_with_their_age_since_created_at(harness: OutcomesHarness) -> None:
    """A copy counts as a repeated delivery. An age is never negative, even if the shim's clock is ahead."""
    now = time.time()
    await harness.attempt(from_shim("a", now - 100))
    await harness.attempt(from_shim("a", now - 100), from_shim("b", now + 50))
    assert harness.counted(SUBMISSIONS) == {}
    assert harness.counted(TASKS) == {"http": 2}
    assert harness.counted(f"{AGES}_count") == {"http,task": 2}
    assert harness.counted(f"{AGES}_sum")["http,task"] == pytest.approx(100, abs=2)
    assert harness.counted("ingest_repeated_deliveries_total") == {"": 1}


async def test_submission_is_not_counted_if_its_key_belongs_to_another_body_since_its_entry_was_lost(
    harness: OutcomesHarness,
) -> None:
    """Its event is published, and nothing in the ledger would say so to a copy."""
    other = TASK | {"consensus_threshold": 5}
    now = time.time()
    await harness.attempt(from_shim("a", now))
    published = await harness.attempt(from_shim("a", now - 100, other), from_shim("b", now))
    assert len(published) == 2
    assert harness.counted(TASKS) == {"http": 2}
    assert harness.counted(f"{AGES}_count") == {"http,task": 2}


@pytest.mark.parametrize(("timestamp", "age"), [(-100, 100), (None, 0), (-10 * 366 * 86_400, 0), (3600, 0)])
async def test_age_of_a_direct_submission_starts_at_its_timestamp_if_that_is_plausible(
    harness: OutcomesHarness, timestamp: int | None, age: float
) -> None:
    sent = None if timestamp is None else int(time.time()) + timestamp
    await harness.attempt(direct_delivery("1", timestamp=sent))
    assert harness.counted(f"{AGES}_sum")["amqp,task"] == pytest.approx(age, abs=2)


async def test_failed_attempt_counts_as_waiting_and_the_outcome_counts_later(harness: OutcomesHarness) -> None:
    harness.publisher.outcome = PublishOutcome.NACKED
    await harness.attempt(direct_delivery("1"), direct_delivery("2", {}))
    assert harness.counted(SUBMISSIONS) == harness.counted(TASKS) == {}
    assert harness.counted("ingest_waiting_submissions_total") == {"refused": 2}
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    await harness.attempt(direct_delivery("1", redelivered=True), direct_delivery("2", {}, redelivered=True))
    assert harness.counted(SUBMISSIONS) == {"amqp,task,accepted": 1, "amqp,task,rejected,invalid": 1}


async def test_submission_of_an_untrusted_user_counts_as_waiting_and_not_as_a_repeated_delivery(
    harness: OutcomesHarness,
) -> None:
    untrusted = msgspec.structs.replace(from_shim("a", time.time()), user_id="unknown")
    await harness.attempt(untrusted, from_shim("b", time.time()))
    assert harness.counted("ingest_waiting_submissions_total") == {"untrusted": 1}
    assert harness.counted("ingest_repeated_deliveries_total") == {}


async def test_copy_and_contended_submission_of_one_micro_batch_are_counted_apart(harness: OutcomesHarness) -> None:
    submission = task_submission(TASK, "c", frozenset(), "held")
    await harness.admission.admit([Request(submission, Customer(cust_id="c"))])
    await harness.attempt(from_shim("a", time.time()))
    await harness.attempt(from_shim("a", time.time()), direct_delivery("held"))
    assert harness.counted("ingest_repeated_deliveries_total") == {"": 1}
    assert harness.counted("ingest_waiting_submissions_total") == {"busy": 1}


async def test_micro_batch_of_tasks_and_batches_counts_each_as_what_it_is(harness: OutcomesHarness) -> None:
    await harness.attempt(direct_delivery("t"), direct_delivery("b", {"tasks": [TASK, TASK]}))
    assert harness.counted(SUBMISSIONS) == {"amqp,task,accepted": 1, "amqp,batch,accepted": 1}
    assert harness.counted(TASKS) == {"amqp": 3}
