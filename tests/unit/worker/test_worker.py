"""How a worker makes cohorts of what is delivered, on a real ledger and a real queue."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from ingest.admission import Admission
from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.customers import Customer
from ingest.domain.ledger import Entry
from ingest.store.sqlite import SqliteStore
from ingest.worker import Worker
from tests.support.direct_submissions import submit

PREFETCH = 40
FULL = PREFETCH // 4
"""Deliveries of a full cohort."""
_SETTLE = 0.2
"""Seconds in which whatever is to begin has begun."""


class Gate(SqliteStore):
    """A store whose claims wait until it is opened. `cohorts` are the sizes of those that came."""

    def prepare(self) -> None:
        self.cohorts: list[int] = []
        self.opened = asyncio.Event()

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        self.cohorts.append(len(entries))
        await self.opened.wait()
        return await super().claim(entries)


class WorkerHarness:
    """A worker that runs, and its queues."""

    def __init__(self, store: Gate, broker: EmbeddedBroker) -> None:
        self.store, self._broker = store, broker
        self.worker = Worker(
            store=store,
            broker=broker,
            admission=Admission(store),
            trusted_users=frozenset({"ingest"}),
            prefetch={topology.INGEST_TASKS: PREFETCH},
        )
        self.running = asyncio.create_task(self.worker.run())
        self._sent = 0

    async def submit(self, count: int) -> None:
        """Returns when what is to be done about them has begun."""
        await submit(self._broker, range(self._sent, self._sent + count))
        self._sent += count
        await asyncio.sleep(_SETTLE)

    async def events(self, count: int) -> None:
        """So many, and no more, come out."""
        consumer = await self._broker.consumer(topology.CONSENSUS_TASKS, 100)
        ids: list[str | None] = []
        async with asyncio.timeout(10):
            while len(ids) < count:
                ids += [each.message_id for each in await consumer.receive()]
        assert len(set(ids)) == len(ids) == count
        await consumer.close()


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[WorkerHarness]:
    store = await Gate.open(tmp_path / "store.db")
    store.prepare()
    await store.save_customer(Customer(cust_id="c"))
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    made = WorkerHarness(store, broker)
    yield made
    store.opened.set()
    made.worker.stop()
    await asyncio.wait_for(made.running, 5)
    await broker.close()
    await store.close()


async def test_beside_another_a_cohort_is_full(harness: WorkerHarness) -> None:
    """The first begins at once, however small. What comes while it is under way waits until it fills a cohort, or the
    worker has nothing else to do."""
    await harness.submit(1)
    assert harness.store.cohorts == [1]
    await harness.submit(FULL - 1)
    assert harness.store.cohorts == [1]
    await harness.submit(2)
    assert harness.store.cohorts == [1, FULL]
    harness.store.opened.set()
    await harness.events(FULL + 2)
    assert harness.store.cohorts == [1, FULL, 1]


async def test_one_cohort_gathers_while_three_are_under_way(harness: WorkerHarness) -> None:
    """Three at once; the fourth begins when one is through."""
    await harness.submit(PREFETCH)
    assert harness.store.cohorts == [FULL] * 3
    harness.store.opened.set()
    await harness.events(PREFETCH)
    assert harness.store.cohorts == [FULL] * 4


async def test_a_stop_finishes_what_waits(harness: WorkerHarness) -> None:
    """Also what does not fill a cohort."""
    await harness.submit(1)
    await harness.submit(3)
    harness.worker.stop()
    await asyncio.sleep(_SETTLE)
    assert not harness.running.done()
    harness.store.opened.set()
    await asyncio.wait_for(harness.running, 5)
    assert harness.store.cohorts == [1, 3]
    await harness.events(4)
