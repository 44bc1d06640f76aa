"""The circuit breaker alone, in virtual time."""

import asyncio

import pytest

from ingest.waiting import Backoff
from ingest.worker.breaker import PAUSES, CircuitBreaker, Stopping
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

    async def make_attempt(name: int) -> None:
        async with breaker.attempt() as attempt:
            admitted.append(name)
            if len(admitted) == 1:
                await finish_trial.wait()
            attempt.made_progress = True

    attempts = [asyncio.create_task(make_attempt(name)) for name in range(11)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert admitted == [0]
    assert breaker.state.is_open
    finish_trial.set()
    await asyncio.wait_for(asyncio.gather(*attempts), 5)
    assert sorted(admitted) == list(range(11))
    assert not breaker.state.is_open


async def test_trial_attempts_take_turns() -> None:
    """Deliveries that fail again and again must not keep the others from the trial that closes the circuit."""
    breaker = CircuitBreaker(backoff=Backoff(0, 0))
    await fail(breaker)
    admitted = []

    async def make_attempts(name: str, count: int, *, made_progress: bool) -> None:
        for _ in range(count):
            async with breaker.attempt() as attempt:
                admitted.append(name)
                await asyncio.sleep(0)
                attempt.made_progress = made_progress

    failing = make_attempts("failing", 20, made_progress=False)
    await asyncio.gather(failing, make_attempts("other", 1, made_progress=True))
    assert admitted.index("other") <= 1


async def test_pauses_before_trial_attempts_double_up_to_the_longest() -> None:
    virtual_time = VirtualTime()
    breaker = CircuitBreaker(
        clock=virtual_time.clock, wait=virtual_time.wait, backoff=Backoff(*PAUSES, jitter=lambda: 1.0)
    )
    for _ in range(9):
        await fail(breaker)
    assert virtual_time.waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert breaker.state.trials == 8


async def test_attempt_without_anything_to_attempt_leaves_the_circuit_open() -> None:
    virtual_time = VirtualTime()
    breaker = CircuitBreaker(clock=virtual_time.clock, wait=virtual_time.wait)
    await fail(breaker)
    async with breaker.attempt():
        pass
    assert breaker.state.is_open
    async with breaker.attempt() as attempt:
        attempt.made_progress = True
    assert not breaker.state.is_open


async def test_trial_attempt_without_anything_to_attempt_does_not_lengthen_the_pause() -> None:
    virtual_time = VirtualTime()
    backoff = Backoff(*PAUSES, jitter=lambda: 1.0)
    breaker = CircuitBreaker(clock=virtual_time.clock, wait=virtual_time.wait, backoff=backoff)
    await fail(breaker)
    for _ in range(3):
        async with breaker.attempt():
            pass
    await fail(breaker)
    await fail(breaker)
    assert virtual_time.waits == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.2])


async def test_pauses_start_again_with_the_next_outage() -> None:
    virtual_time = VirtualTime()
    backoff = Backoff(*PAUSES, jitter=lambda: 1.0)
    breaker = CircuitBreaker(clock=virtual_time.clock, wait=virtual_time.wait, backoff=backoff)
    for _ in range(3):
        await fail(breaker)
    breaker.close()
    await fail(breaker)
    await fail(breaker)
    assert virtual_time.waits == pytest.approx([0.1, 0.2, 0.1])


async def test_trial_attempt_that_raises_lets_the_next_one_through() -> None:
    virtual_time = VirtualTime()
    breaker = CircuitBreaker(clock=virtual_time.clock, wait=virtual_time.wait)
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


async def test_open_for_measures_one_outage_without_interruption() -> None:
    virtual_time = VirtualTime()
    breaker = CircuitBreaker(clock=virtual_time.clock, wait=virtual_time.wait)
    waiting = asyncio.create_task(breaker.open_for(60))
    await asyncio.sleep(0)
    assert not waiting.done()
    await fail(breaker)
    assert await waiting
    assert virtual_time.now == 60
