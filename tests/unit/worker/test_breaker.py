"""The circuit breaker: alone, and in a worker on the embedded broker whose store becomes unavailable."""

import asyncio
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
from ingest.waiting import Backoff
from ingest.worker import Worker
from ingest.worker.breaker import PAUSES, CircuitBreaker, Stopping
from tests.support.direct_submissions import submit
from tests.support.virtual_time import VirtualTime


async def fail(breaker: CircuitBreaker) -> None:
    async with breaker.attempt() as attempt:
        attempt.made_progress = False


async def test_open_circuit_admits_one_trial_attempt_until_it_makes_progress() -> None:
    breaker = CircuitBreaker(backoff=Backoff(0, 0))
    await fail(breaker)
    assert breaker.state.is_open
    admitted = []
    finish_trial = asyncio.Event()

    async def attempt(name: int) -> None:
        async with breaker.attempt() as attempt:
            admitted.append(name)
            if len(admitted) == 1:
                await finish_trial.wait()
            attempt.made_progress = True

    attempts = [asyncio.create_task(attempt(name)) for name in range(11)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert admitted == [0]
    assert breaker.state.is_open
    finish_trial.set()
    await asyncio.wait_for(asyncio.gather(*attempts), 5)
    assert sorted(admitted) == list(range(11))
    assert not breaker.state.is_open


async def test_pauses_before_trial_attempts_double_up_to_the_longest() -> None:
    time = VirtualTime()
    breaker = CircuitBreaker(clock=time.clock, wait=time.wait, backoff=Backoff(*PAUSES, jitter=lambda: 1.0))
    for _ in range(9):
        await fail(breaker)
    assert time.waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert breaker.state.trials == 8


async def test_attempt_without_anything_to_attempt_leaves_the_circuit_open() -> None:
    time = VirtualTime()
    breaker = CircuitBreaker(clock=time.clock, wait=time.wait)
    await fail(breaker)
    async with breaker.attempt():
        pass
    assert breaker.state.is_open
    async with breaker.attempt() as attempt:
        attempt.made_progress = True
    assert not breaker.state.is_open


async def test_trial_attempt_that_raises_lets_the_next_one_through() -> None:
    time = VirtualTime()
    breaker = CircuitBreaker(clock=time.clock, wait=time.wait)
    await fail(breaker)
    with pytest.raises(ZeroDivisionError):
        async with breaker.attempt():
            raise ZeroDivisionError
    async with breaker.attempt() as attempt:
        attempt.made_progress = True
    assert not breaker.state.is_open


async def test_stop_ends_every_wait_for_an_open_circuit() -> None:
    breaker = CircuitBreaker()
    await fail(breaker)
    waiting = [asyncio.create_task(fail(breaker)) for _ in range(3)]
    await asyncio.sleep(0)
    breaker.stop()
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
    assert [type(result) for result in results] == [Stopping] * 3


async def test_closed_circuit_admits_attempts_after_stop() -> None:
    breaker = CircuitBreaker()
    breaker.stop()
    async with breaker.attempt() as attempt:
        attempt.made_progress = True


async def test_open_for_measures_one_outage_without_a_break() -> None:
    time = VirtualTime()
    breaker = CircuitBreaker(clock=time.clock, wait=time.wait)
    waiting = asyncio.create_task(breaker.open_for(60))
    await asyncio.sleep(0)
    assert not waiting.done()
    await fail(breaker)
    assert await waiting
    assert time.now == 60


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
    assert harness.worker.breaker.is_open
    assert harness.store.calls < 20
    harness.store.away = False
    events = await harness.take(topology.CONSENSUS_TASKS, 30)
    assert len({json.loads(each.body)["data"]["task_id"] for each in events}) == 30
    assert not harness.worker.breaker.is_open
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
