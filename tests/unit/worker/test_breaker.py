"""The outage brake: alone, and in a worker on the embedded broker whose store goes away."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from ingest.admission import Admission
from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Entry
from ingest.domain.messages import Delivery
from ingest.store.sqlite import SqliteStore
from ingest.worker import Worker
from ingest.worker.breaker import CircuitBreaker
from tests.support.direct_submissions import submit


async def test_one_at_a_time_while_it_is_on() -> None:
    """Many wait, one is let through; where that gets somewhere, all are."""
    breaker = CircuitBreaker()
    assert await breaker.passed()
    breaker.tell(False)
    assert breaker.state.on
    passed = []

    async def wait() -> None:
        if await breaker.passed():
            passed.append(asyncio.current_task())

    async def probe() -> None:
        await breaker.passed()
        passed.append(asyncio.current_task())
        await asyncio.sleep(0.5)
        assert len(passed) == 1
        breaker.tell(True)

    probing = asyncio.create_task(probe())
    await asyncio.sleep(0)
    others = [asyncio.create_task(wait()) for _ in range(10)]
    await asyncio.wait_for(asyncio.gather(probing, *others), 5)
    assert (len(passed), breaker.state.on) == (11, False)


async def test_tries_become_rare() -> None:
    """The pause doubles: an outage of two seconds sees a handful of tries, not a hot loop."""
    breaker = CircuitBreaker()
    breaker.tell(False)
    tries = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            while await breaker.passed():
                tries += 1
                breaker.tell(False)
    assert 2 <= tries <= 8
    assert breaker.state.tries == tries


async def test_a_stop_ends_the_waiting() -> None:
    """Braked: whoever waits is told to stop. Not braked: what is in flight may finish."""
    breaker = CircuitBreaker()
    breaker.tell(False)
    waiting = [asyncio.create_task(breaker.passed()) for _ in range(3)]
    await asyncio.sleep(0)
    breaker.stop()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [False] * 3
    free = CircuitBreaker()
    free.stop()
    assert await free.passed()


class Absent(SqliteStore):
    """A store that is away while `away`; counts the calls that fail."""

    away = True
    calls = 0

    async def customer(self, cust_id: str) -> Customer | None:
        self._check()
        return await super().customer(cust_id)

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        self._check()
        return await super().claim(entries)

    async def ready(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.away:
            self.calls += 1
            raise StoreUnavailable("away")


class WorkerHarness:
    """A worker with a store that can be away."""

    def __init__(self, store: Absent, broker: EmbeddedBroker, outage_hold: float) -> None:
        self.store, self.broker = store, broker
        self.worker = Worker(
            store=store,
            broker=broker,
            admission=Admission(store),
            trusted_users=frozenset({"ingest"}),
            prefetch={topology.INGEST_TASKS: 10, topology.INGEST_BATCHES: 2},
            outage_hold=outage_hold,
        )

    async def submit(self, count: int) -> None:
        await submit(self.broker, range(count))

    async def take(self, queue: str, count: int) -> list[Delivery]:
        consumer = await self.broker.consumer(queue, 100)
        got: list[Delivery] = []
        async with asyncio.timeout(10):
            while len(got) < count:
                got += await consumer.receive()
        await consumer.ack(got)
        await consumer.close()
        return got


@pytest.fixture
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WorkerHarness]:
    store = await Absent.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="c"))
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    made = WorkerHarness(store, broker, request.param)
    running = asyncio.create_task(made.worker.run())
    yield made
    made.worker.stop()
    await asyncio.wait_for(running, 5)
    await broker.close()
    await store.close()


@pytest.mark.parametrize("harness", [600.0], indirect=True)
async def test_a_worker_waits_out_an_outage(harness: WorkerHarness) -> None:
    """The store away: few calls, all held, nothing dead-lettered; the store back: all of it is accepted, unasked."""
    await harness.submit(30)
    await asyncio.sleep(2)
    assert harness.worker.breaker.on
    assert harness.store.calls < 20
    harness.store.away = False
    events = await harness.take(topology.CONSENSUS_TASKS, 30)
    assert len({json.loads(each.body)["data"]["task_id"] for each in events}) == 30
    assert not harness.worker.breaker.on
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(harness.take(topology.INGEST_DEAD, 1), 0.3)


@pytest.mark.parametrize("harness", [0.3], indirect=True)
async def test_in_a_long_outage_a_worker_holds_nothing(harness: WorkerHarness) -> None:
    """Beyond `outage_hold` submissions are back in their queue, once, and are accepted after the outage."""
    await harness.submit(5)
    await asyncio.sleep(1.5)
    other = await harness.broker.consumer(topology.INGEST_TASKS, 100)
    waiting = await asyncio.wait_for(other.receive(), 5)
    assert {(each.message_id, each.deliveries) for each in waiting} == {(f"m{i}", 1) for i in range(5)}
    await other.close()
    harness.store.away = False
    start = time.monotonic()
    assert len(await harness.take(topology.CONSENSUS_TASKS, 5)) == 5
    assert time.monotonic() - start < 10
