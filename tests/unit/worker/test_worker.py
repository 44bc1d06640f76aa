"""How a worker forms micro-batches of deliveries, on a real ledger and a real queue."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.customers import Customer
from ingest.domain.ledger import Entry
from ingest.store.sqlite import SqliteStore
from tests.support.worker_harness import WorkerHarness

PREFETCH = 40
FULL = PREFETCH // 4
"""Deliveries of a full micro-batch."""
SETTLE = 0.2
"""Seconds within which every attempt that may start has started."""


class GatedStore(SqliteStore):
    """A store whose claims wait until the gate is opened. `claims` are the sizes of the micro-batches, in order."""

    def prepare(self) -> None:
        self.claims: list[int] = []
        self.gate = asyncio.Event()

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        self.claims.append(len(entries))
        await self.gate.wait()
        return await super().claim(entries)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[GatedStore]:
    store = await GatedStore.open(tmp_path / "store.db")
    store.prepare()
    await store.save_customer(Customer(cust_id="c"))
    yield store
    await store.close()


@pytest.fixture
async def harness(tmp_path: Path, store: GatedStore) -> AsyncIterator[WorkerHarness]:
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    async with WorkerHarness(store, broker, {topology.INGEST_TASKS: PREFETCH}) as harness:
        yield harness
        store.gate.set()
    await broker.close()


async def submit(harness: WorkerHarness, count: int) -> None:
    await harness.submit(count)
    await asyncio.sleep(SETTLE)


async def expect_events(harness: WorkerHarness, count: int) -> None:
    """Assert that exactly `count` tasks are accepted, each once."""
    ids = [event.message_id for event in await harness.take(topology.CONSENSUS_TASKS, count)]
    assert len(set(ids)) == len(ids) == count


async def test_micro_batch_waits_until_it_is_full_while_another_is_in_progress(
    harness: WorkerHarness, store: GatedStore
) -> None:
    """The first one starts at once, and so does a small one after all others are finished."""
    await submit(harness, 1)
    assert store.claims == [1]
    await submit(harness, FULL - 1)
    assert store.claims == [1]
    await submit(harness, 2)
    assert store.claims == [1, FULL]
    store.gate.set()
    await expect_events(harness, FULL + 2)
    assert store.claims == [1, FULL, 1]


async def test_fourth_micro_batch_starts_when_one_of_three_is_finished(
    harness: WorkerHarness, store: GatedStore
) -> None:
    await submit(harness, PREFETCH)
    assert store.claims == [FULL] * 3
    store.gate.set()
    await expect_events(harness, PREFETCH)
    assert store.claims == [FULL] * 4


async def test_stop_finishes_deliveries_that_wait_for_a_full_micro_batch(
    harness: WorkerHarness, store: GatedStore
) -> None:
    await submit(harness, 1)
    await submit(harness, 3)
    harness.worker.stop()
    await asyncio.sleep(SETTLE)
    assert not harness.running.done()
    store.gate.set()
    await asyncio.wait_for(harness.running, 5)
    assert store.claims == [1, 3]
    await expect_events(harness, 4)
