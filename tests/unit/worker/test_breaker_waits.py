"""When the circuit breaker lets waiting attempts go on: exact times, on an event loop with virtual time."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from ingest.waiting import Backoff
from ingest.worker.breaker import BreakerState, CircuitBreaker, Stopping
from tests.support.virtual_time_loop import in_virtual_time

T = TypeVar("T")
PAUSE = 10.0
"""The first pause before a trial attempt; the second one is twice as long."""


class Attempts:
    """A breaker and what happens under it: `log` has the time and the name of each attempt that is admitted."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.breaker = CircuitBreaker(clock=self._loop.time, backoff=Backoff(PAUSE, 1000, jitter=lambda: 1.0))
        self.log: list[tuple[float, str]] = []
        self._tasks: list[asyncio.Task[Any]] = []

    async def make(self, name: str, made_progress: bool | None, *, seconds: float = 0.0) -> None:
        """Make an attempt that takes so long."""
        async with self.breaker.attempt() as attempt:
            self.log.append((self._loop.time(), name))
            await asyncio.sleep(seconds)
            attempt.made_progress = made_progress

    async def start(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(coroutine)
        self._tasks.append(task)  # the loop does not keep it
        await until_idle()
        return task


async def until_idle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@in_virtual_time
async def test_attempts_that_wait_go_on_as_soon_as_the_trial_makes_progress() -> None:
    attempts = Attempts()
    await attempts.make("opens", False)
    for name, seconds in (("trial", 5.0), ("b", 0.0), ("c", 0.0)):
        await attempts.start(attempts.make(name, True, seconds=seconds))
    await asyncio.sleep(100)
    assert attempts.log == [(0, "opens"), (10, "trial"), (15, "b"), (15, "c")]
    assert attempts.breaker.state == BreakerState()


@in_virtual_time
async def test_next_attempt_becomes_the_trial_as_soon_as_the_first_one_has_failed() -> None:
    attempts = Attempts()
    await attempts.make("opens", False)
    await attempts.start(attempts.make("trial", False, seconds=5.0))
    await attempts.start(attempts.make("next", False))
    await asyncio.sleep(100)
    assert attempts.log == [(0, "opens"), (10, "trial"), (15 + 20, "next")]
    assert attempts.breaker.state == BreakerState(opened_at=0.0, trials=2)


@in_virtual_time
async def test_next_attempt_becomes_the_trial_if_the_first_one_is_cancelled_during_its_pause() -> None:
    attempts = Attempts()
    await attempts.make("opens", False)
    first = await attempts.start(attempts.make("cancelled", False))
    await attempts.start(attempts.make("next", False))
    await asyncio.sleep(4)
    first.cancel()
    await asyncio.sleep(100)
    assert attempts.log == [(0, "opens"), (4 + 10, "next")]


@in_virtual_time
async def test_older_attempt_that_makes_progress_ends_the_pause_of_the_trial() -> None:
    """It was admitted before the circuit opened. Both attempts that wait are then ordinary ones, not trials."""
    attempts = Attempts()
    await attempts.start(attempts.make("older", True, seconds=3.0))
    await attempts.make("opens", False)
    for name in ("b", "c"):
        await attempts.start(attempts.make(name, True))
    await asyncio.sleep(100)
    assert attempts.log == [(0, "older"), (0, "opens"), (3, "b"), (3, "c")]


@in_virtual_time
async def test_older_attempt_that_makes_progress_closes_the_circuit_before_any_attempt_waits() -> None:
    attempts = Attempts()
    await attempts.start(attempts.make("older", True, seconds=3.0))
    await attempts.make("opens", False)
    await asyncio.sleep(4)
    assert not attempts.breaker.state.is_open


@in_virtual_time
async def test_older_attempt_that_fails_changes_neither_the_pause_nor_the_time_of_the_outage() -> None:
    attempts = Attempts()
    await attempts.start(attempts.make("older", False, seconds=3.0))
    await attempts.make("opens", False)
    await attempts.start(attempts.make("trial", False))
    await asyncio.sleep(4)
    assert attempts.breaker.state == BreakerState(opened_at=0.0)
    await attempts.make("second", None)
    assert attempts.log[2:] == [(10, "trial"), (10 + 20, "second")]


@in_virtual_time
async def test_outage_is_measured_from_the_time_at_which_the_circuit_opened_last() -> None:
    attempts = Attempts()
    waiting = await attempts.start(attempts.breaker.open_for(60))
    await asyncio.sleep(5)
    await attempts.make("opens", False)
    assert attempts.breaker.state.opened_at == 5
    await asyncio.sleep(30)
    attempts.breaker.close()
    await asyncio.sleep(100)
    assert not waiting.done()
    await attempts.make("opens again", False)
    await asyncio.sleep(59.9)
    assert not waiting.done()
    await asyncio.sleep(0.1)
    await until_idle()
    assert waiting.result() is True


@in_virtual_time
async def test_outage_is_not_long_before_its_time_whatever_happens_shortly_before() -> None:
    """A trial attempt fails half a second before, which wakes everything that waits."""
    attempts = Attempts()
    waiting = await attempts.start(attempts.breaker.open_for(60))
    await attempts.make("opens", False)
    await attempts.start(attempts.make("trial", False, seconds=49.5))
    await asyncio.sleep(59.9)
    assert not waiting.done()
    await asyncio.sleep(0.1)
    await until_idle()
    assert waiting.result() is True


@in_virtual_time
@pytest.mark.parametrize("is_open", [False, True])
async def test_stop_ends_the_wait_for_a_long_outage(is_open: bool) -> None:
    attempts = Attempts()
    if is_open:
        await attempts.make("opens", False)
    waiting = await attempts.start(attempts.breaker.open_for(60))
    attempts.breaker.stop()
    await until_idle()
    assert waiting.result() is False
    assert await attempts.breaker.open_for(0) is False


@in_virtual_time
async def test_wait_for_the_circuit_to_close_ends_with_the_close_the_stop_or_the_time() -> None:
    attempts = Attempts()
    assert await attempts.breaker.closed_within(0)
    await attempts.make("opens", False)
    assert not await attempts.breaker.closed_within(7)
    assert asyncio.get_running_loop().time() == 7
    waiting = await attempts.start(attempts.breaker.closed_within(50))
    attempts.breaker.close()
    await until_idle()
    assert waiting.result() is True
    await attempts.make("opens again", False)
    waiting = await attempts.start(attempts.breaker.closed_within(50))
    attempts.breaker.stop()
    await until_idle()
    assert waiting.result() is True
    assert await attempts.breaker.closed_within(50)
    assert asyncio.get_running_loop().time() == 7


@in_virtual_time
async def test_wait_for_the_circuit_to_close_outlasts_what_does_not_close_it() -> None:
    """Here a trial that fails. The wait ends at its own time."""
    attempts = Attempts()
    await attempts.make("opens", False)
    await attempts.start(attempts.make("trial", False))
    assert not await attempts.breaker.closed_within(15)
    assert asyncio.get_running_loop().time() == 15


@in_virtual_time
async def test_no_attempt_is_made_after_a_stop_while_the_circuit_is_open() -> None:
    """Neither by the trial during its pause nor by the attempts that wait for it."""
    attempts = Attempts()
    await attempts.make("opens", False)
    waiting = [await attempts.start(attempts.make(name, True)) for name in ("trial", "other")]
    attempts.breaker.stop()
    await until_idle()
    assert [type(task.exception()) for task in waiting] == [Stopping, Stopping]
    assert attempts.log == [(0, "opens")]
    with pytest.raises(Stopping):
        await attempts.make("late", True)
    assert attempts.breaker.state == BreakerState(opened_at=0.0)


@in_virtual_time
async def test_attempt_that_raises_does_not_open_a_closed_circuit() -> None:
    """A defect in the worker is not an outage."""
    attempts = Attempts()
    with pytest.raises(ZeroDivisionError):
        async with attempts.breaker.attempt():
            raise ZeroDivisionError
    assert attempts.breaker.state == BreakerState()


def test_breaker_has_its_own_pauses_by_default() -> None:
    """Between half and one and a half of `PAUSES`."""

    @in_virtual_time
    async def run() -> None:
        breaker = CircuitBreaker(clock=asyncio.get_running_loop().time)
        for _ in range(2):
            async with breaker.attempt() as attempt:
                attempt.made_progress = False
        assert 0.05 <= asyncio.get_running_loop().time() <= 0.15

    run()
