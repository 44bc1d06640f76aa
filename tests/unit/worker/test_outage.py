"""A worker on the embedded broker whose store becomes unavailable."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Entry
from ingest.store.sqlite import SqliteStore
from ingest.waiting import Backoff
from ingest.worker.breaker import CircuitBreaker
from ingest.worker.worker import OUTAGE_HOLD
from tests.support.eventually import eventually
from tests.support.worker_harness import WorkerHarness


class UnavailableStore(SqliteStore):
    """A store that is unavailable until `available` is set. It counts the calls that fail."""

    available = False
    failed_attempts = 0
    failed_ready_checks = 0

    async def customer(self, cust_id: str) -> Customer | None:
        self._check()
        return await super().customer(cust_id)

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        self._check()
        return await super().claim(entries)

    async def ready(self) -> None:
        if not self.available:
            self.failed_ready_checks += 1
            raise StoreUnavailable("unavailable")

    def _check(self) -> None:
        if not self.available:
            self.failed_attempts += 1
            raise StoreUnavailable("unavailable")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[UnavailableStore]:
    store = await UnavailableStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="c"))
    yield store
    await store.close()


@pytest.fixture
async def harness(
    request: pytest.FixtureRequest, tmp_path: Path, store: UnavailableStore
) -> AsyncIterator[WorkerHarness]:
    """The parameter is `outage_hold`, in seconds. Trial attempts are made after pauses of about 10 ms."""
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    prefetch = {topology.INGEST_TASKS: 10, topology.INGEST_BATCHES: 2}
    breaker = CircuitBreaker(backoff=Backoff(0.01, 0.01))
    async with WorkerHarness(store, broker, prefetch, outage_hold=request.param, circuit_breaker=breaker) as harness:
        yield harness
    await broker.close()


@pytest.mark.parametrize("harness", [OUTAGE_HOLD], indirect=True)
async def test_worker_accepts_every_submission_after_an_outage(harness: WorkerHarness, store: UnavailableStore) -> None:
    """During the outage only trial attempts call the store, and nothing is dead-lettered."""
    await harness.submit(30)
    await eventually(lambda: harness.worker.breaker.trials >= 10)
    assert harness.worker.breaker.is_open
    # Up to three micro-batches were in progress when the circuit opened; one trial may be in progress now.
    assert store.failed_attempts <= harness.worker.breaker.trials + 3
    store.available = True
    events = await harness.take(topology.CONSENSUS_TASKS, 30)
    assert len({json.loads(event.body)["data"]["task_id"] for event in events}) == 30
    assert not harness.worker.breaker.is_open
    assert await harness.broker.dead_letters().count() == 0


@pytest.mark.parametrize("harness", [0.3], indirect=True)
async def test_worker_returns_deliveries_once_in_a_long_outage(harness: WorkerHarness, store: UnavailableStore) -> None:
    """The deliveries are back in their queue after `outage_hold` and are accepted after the outage."""
    await harness.submit(5)
    await eventually(lambda: store.failed_ready_checks >= 2)  # made only after the deliveries were returned
    other_consumer = await harness.broker.consumer(topology.INGEST_TASKS, 100)
    returned = await asyncio.wait_for(other_consumer.receive(), 5)
    assert {(delivery.message_id, delivery.deliveries) for delivery in returned} == {(f"m{i}", 1) for i in range(5)}
    await other_consumer.close()
    store.available = True
    assert len(await harness.take(topology.CONSENSUS_TASKS, 5)) == 5
