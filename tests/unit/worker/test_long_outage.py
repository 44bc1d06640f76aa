"""What a worker does with its deliveries in a long outage, and how often it searches for refunds; in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable

from ingest.admission import Admission
from ingest.domain.errors import StoreUnavailable
from ingest.waiting import Backoff
from ingest.worker.breaker import CircuitBreaker
from ingest.worker.outage import return_deliveries_in_long_outages
from ingest.worker.refunds import refund_doubts_regularly
from tests.support.fakes import AckingConsumer
from tests.support.loop_harness import now
from tests.support.virtual_time_loop import in_virtual_time


class PausedConsumer(AckingConsumer):
    """Records when it is paused and resumed."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, float]] = []

    async def pause(self) -> None:
        self.log.append(("pause", now()))

    async def resume(self) -> None:
        self.log.append(("resume", now()))


class Dependency:
    """Something that is available from a time on. `checks` are the times at which it was checked."""

    def __init__(self, available_at: float) -> None:
        self._available_at = available_at
        self.checks: list[float] = []

    async def ready(self) -> None:
        self.checks.append(now())
        if now() < self._available_at:
            raise StoreUnavailable("unavailable")


class Outage:
    """An open circuit, two consumers, and what returns their deliveries after a minute."""

    def __init__(self, *dependencies: Dependency) -> None:
        self.breaker = CircuitBreaker(clock=now, backoff=Backoff(1000, 1000, jitter=lambda: 1.0))
        self.consumers = [PausedConsumer(), PausedConsumer()]
        self._checks: list[Callable[[], Awaitable[None]]] = [dependency.ready for dependency in dependencies]

    def start(self) -> "asyncio.Task[None]":
        """Start what returns the deliveries. It ends after `breaker.stop`."""
        return asyncio.create_task(
            return_deliveries_in_long_outages(
                self.breaker, dict(zip("ab", self.consumers, strict=True)), self._checks, hold=60
            )
        )

    async def begin(self) -> None:
        async with self.breaker.attempt() as attempt:
            attempt.made_progress = False


@in_virtual_time
async def test_deliveries_are_returned_once_and_consumed_again_when_everything_is_ready() -> None:
    """Then the circuit is closed, too. Until then the dependencies are checked every few seconds."""
    store, broker = Dependency(100), Dependency(200)
    outage = Outage(store, broker)
    task = outage.start()
    await outage.begin()
    await asyncio.sleep(1000)
    (log, same_log) = (consumer.log for consumer in outage.consumers)
    assert log == same_log
    assert [name for name, _ in log] == ["pause", "resume"]
    assert log[0][1] == 60
    assert 200 <= log[1][1] <= 207.5
    assert store.checks[0] == 60
    assert min(broker.checks) >= 100
    assert 200 / 7.5 / 2 < len(store.checks) < 100
    assert not outage.breaker.state.is_open
    outage.breaker.stop()
    await task


@in_virtual_time
async def test_deliveries_are_consumed_again_as_soon_as_the_circuit_closes() -> None:
    """A trial attempt has made progress, whatever the checks say."""
    outage = Outage(Dependency(10_000))
    task = outage.start()
    await outage.begin()
    await asyncio.sleep(90)
    outage.breaker.close()
    await asyncio.sleep(1)
    assert [consumer.log for consumer in outage.consumers] == [[("pause", 60), ("resume", 90)]] * 2
    outage.breaker.stop()
    await task


@in_virtual_time
async def test_deliveries_of_a_second_outage_are_returned_too() -> None:
    outage = Outage()
    task = outage.start()
    for _ in range(2):
        await outage.begin()
        await asyncio.sleep(100)
    assert outage.consumers[0].log == [("pause", 60), ("resume", 60), ("pause", 160), ("resume", 160)]
    outage.breaker.stop()
    await task


class CountingAdmission(Admission):
    """Records the times of its searches. The first one fails."""

    def __init__(self) -> None:
        self.searches: list[float] = []

    async def refund_doubts(self) -> int:
        self.searches.append(now())
        if len(self.searches) == 1:
            raise StoreUnavailable("unavailable")
        return 0


@in_virtual_time
async def test_refunds_are_searched_regularly_and_an_outage_delays_them() -> None:
    admission, stopping = CountingAdmission(), asyncio.Event()
    task = asyncio.create_task(refund_doubts_regularly(admission, stopping, 10))
    await asyncio.sleep(35)
    assert admission.searches == [10, 20, 30]
    stopping.set()
    await task
    assert now() == 35
