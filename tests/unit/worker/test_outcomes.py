"""What the worker counts, on a real ledger: each submission once, however often it is attempted."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.admission import Admission
from ingest.domain.admitted import Admitted, to_message
from ingest.domain.customers import Customer
from ingest.domain.errors import Reason
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.submissions import task_submission
from ingest.store.sqlite import SqliteStore
from ingest.telemetry.prometheus import PrometheusMeter
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.processor import DeliveryProcessor
from tests.support.direct_submissions import TASK
from tests.support.fakes import AckingConsumer, ScriptedPublisher
from tests.unit.telemetry.test_metrics import samples


class WorkerHarness:
    """A worker's cohorts and what they have counted."""

    def __init__(self, store: SqliteStore) -> None:
        self.publisher = ScriptedPublisher()
        self.meter = PrometheusMeter()
        intake = DeliveryClassifier(store, frozenset({"shim"}))
        self._cohorts = DeliveryProcessor(store, self.publisher, Admission(store), intake, self.meter)

    async def attempt(self, *deliveries: Delivery) -> None:
        await self._cohorts.attempt(AckingConsumer(), deliveries)

    def counted(self, name: str) -> dict[str, float]:
        """Label values, sorted by label and joined, to value; without those at 0."""
        found = samples(self.meter.registry).items()
        return {
            ",".join(v for _, v in sorted(labels) if v): value
            for (each, labels), value in found
            if each == name and value
        }


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[WorkerHarness]:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.save_customer(Customer(cust_id="c", monthly_quota=6))
    await store.save_customer(Customer(cust_id="strict", strict=True))
    yield WorkerHarness(store)
    await store.close()


def direct(message_id: str, body: object = TASK, *, cust_id: str = "c", **changes: Any) -> Delivery:
    kind = "batch" if isinstance(body, dict) and "tasks" in body else "task"
    known: dict[str, Any] = {
        "queue": "ingest.batches" if kind == "batch" else "ingest.tasks",
        "routing_key": f"{kind}.submitted.{cust_id}",
        "content_type": None,
        "user_id": None,
        "type": None,
        "headers": {},
        "redelivered": False,
        "deliveries": 0,
        "token": None,
    }
    return Delivery(body=json.dumps(body).encode(), message_id=message_id, **(known | changes))


def admitted(key: str, created_at: float) -> Delivery:
    submission = task_submission(TASK | {"idempotency_key": key}, "c", frozenset())
    message = to_message(Admitted(submission, int(created_at * 1000), 86_400))
    made = direct(message.message_id, user_id="shim", type=message.type)
    return msgspec.structs.replace(made, body=message.body)


SUBMISSIONS, TASKS, AGES = "ingest_submissions_total", "ingest_accepted_tasks_total", "ingest_acceptance_age_seconds"


def test_series_begin_at_zero(harness: WorkerHarness) -> None:
    """So that the first refusal has a rate, and an alert."""
    counted = samples(harness.meter.registry)
    for reason in Reason:
        labels = {"door": "amqp", "kind": "task", "outcome": "rejected", "reason": str(reason)}
        assert counted[SUBMISSIONS, frozenset(labels.items())] == 0


async def test_every_outcome_of_a_direct_submission(harness: WorkerHarness) -> None:
    """Accepted, repeated, repeated with another body, refused for each its reason."""
    other = TASK | {"consensus_threshold": 5}
    await harness.attempt(direct("1"), direct("2"), direct("", {}), direct("3", {}), direct("4", cust_id="nobody"))
    await harness.attempt(direct("1"), direct("2", other), direct("s", cust_id="strict"))
    await harness.attempt(direct("s", other, cust_id="strict"), direct("5"))
    await harness.attempt(direct("b", {"tasks": [TASK] * 3}))
    await harness.attempt(direct("6"))
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


async def test_what_the_shim_has_admitted_is_counted_by_its_age(harness: WorkerHarness) -> None:
    """From created_at; a repeat is dropped and counted as that; a clock that is behind makes no negative age."""
    now = time.time()
    await harness.attempt(admitted("a", now - 100))
    await harness.attempt(admitted("a", now - 100), admitted("b", now + 50))
    assert harness.counted(SUBMISSIONS) == {}
    assert harness.counted(TASKS) == {"http": 2}
    assert harness.counted(f"{AGES}_count") == {"http,task": 2}
    assert harness.counted(f"{AGES}_sum")["http,task"] == pytest.approx(100, abs=2)
    assert harness.counted("ingest_repeated_deliveries_total") == {"": 1}


@pytest.mark.parametrize(("timestamp", "age"), [(-100, 100), (None, 0), (-10 * 366 * 86_400, 0), (3600, 0)])
async def test_a_direct_submission_is_as_old_as_its_timestamp_says(
    harness: WorkerHarness, timestamp: int | None, age: float
) -> None:
    """Where it can be believed; else it is new."""
    sent = None if timestamp is None else int(time.time()) + timestamp
    await harness.attempt(direct("1", timestamp=sent))
    assert harness.counted(f"{AGES}_sum")["amqp,task"] == pytest.approx(age, abs=2)


async def test_what_has_to_wait_is_counted_once_it_is_through(harness: WorkerHarness) -> None:
    """An attempt that fails counts as waiting; the outcome is told when it stands."""
    harness.publisher.outcome = PublishOutcome.NACKED
    await harness.attempt(direct("1"), direct("2", {}))
    assert harness.counted(SUBMISSIONS) == harness.counted(TASKS) == {}
    assert harness.counted("ingest_waiting_submissions_total") == {"unavailable": 2}
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    await harness.attempt(direct("1", redelivered=True), direct("2", {}, redelivered=True))
    assert harness.counted(SUBMISSIONS) == {"amqp,task,accepted": 1, "amqp,task,rejected,invalid": 1}
