"""The circuit breaker: stops a worker's attempts while the store or the broker is unavailable."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import structlog

from ingest.waiting import Backoff, wait_for_event

PAUSES: Final = (0.1, 5.0)
"""First and longest pause before a trial attempt, in seconds."""

Wait = Callable[[asyncio.Event, float | None], Awaitable[bool]]
"""Waits until the event is set; returns False if the given seconds pass first."""

_log = structlog.get_logger(__name__)


class Stopping(Exception):
    """The circuit is open and the worker is stopping, so no attempt is made."""


class BreakerState(msgspec.Struct, frozen=True):
    """`opened_at` is in monotonic seconds, None while closed. `trials` counts the trial attempts since then."""

    opened_at: float | None = None
    trials: int = 0

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None


class Attempt:
    """One attempt under the breaker.

    The caller sets `made_progress`. None means that there was nothing to attempt, or that the attempt raised.
    """

    __slots__ = ("made_progress",)

    def __init__(self) -> None:
        self.made_progress: bool | None = None


class CircuitBreaker:
    """One breaker for all queues of a worker, because they share the store and the publisher.

    Closed: every attempt is admitted, and one without progress opens the circuit. Open: one trial attempt at a time is
    admitted, each after a pause (half-open), and all others wait for their turn. Each trial without progress lengthens
    the pause; an attempt with progress closes the circuit. So an outage costs one call every few seconds, however many
    deliveries are held, and deliveries that fail again and again do not keep the others from a trial.

    Args:
        clock: returns monotonic seconds.
        wait: waits for an event or a time; tests pass one that does not sleep.
        backoff: the pauses before trial attempts.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = wait_for_event,
        backoff: Backoff | None = None,
    ) -> None:
        self.state = BreakerState()
        self._clock = clock
        self._wait = wait
        self._backoff = backoff or Backoff(*PAUSES)
        self._pause = 0.0
        self._trial: Attempt | None = None
        self._turn = asyncio.Lock()
        self._stopped = False
        self._change = asyncio.Event()

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[Attempt]:
        """Wait until an attempt is admitted; when it ends, record its result.

        Raises:
            Stopping: the circuit is open and `stop` was called. With a closed circuit, attempts are still admitted.
        """
        attempt = Attempt()
        await self._admit(attempt)
        try:
            yield attempt
        finally:
            self._record(attempt)

    def stop(self) -> None:
        """Note that the worker is stopping: waits end, and attempts that wait for an open circuit raise Stopping."""
        self._stopped = True
        self._notify()

    def close(self) -> None:
        """Close the circuit: the dependencies are known to be available again."""
        if self.state.opened_at is not None:
            seconds = round(self._clock() - self.state.opened_at, 1)
            _log.warning("circuit_closed", seconds=seconds, trials=self.state.trials)
            self.state = BreakerState()
            self._notify()

    async def open_for(self, seconds: float) -> bool:
        """Wait until the circuit has been open for `seconds` without interruption; return False if the worker stops."""
        while not self._stopped:
            if self.state.opened_at is None:
                await self._wait(self._change, None)
                continue
            remaining = self.state.opened_at + seconds - self._clock()
            if remaining <= 0:
                return True
            await self._wait(self._change, remaining)
        return False

    async def closed_within(self, seconds: float) -> bool:
        """Wait at most `seconds` for the circuit to close or the worker to stop; return whether either happened."""
        end = self._clock() + seconds
        while self.state.is_open and not self._stopped and (remaining := end - self._clock()) > 0:
            await self._wait(self._change, remaining)
        return not self.state.is_open or self._stopped

    async def _admit(self, attempt: Attempt) -> None:
        if self.state.is_open:
            async with self._turn:
                await self._admit_in_turn(attempt)

    async def _admit_in_turn(self, attempt: Attempt) -> None:
        while self.state.is_open:
            if self._stopped:
                raise Stopping
            if self._trial is not None:
                await self._wait(self._change, None)
                continue
            self._trial = attempt
            try:
                await self.closed_within(self._pause)
            except BaseException:
                self._end_trial()
                raise
            if self.state.is_open and not self._stopped:
                self.state = BreakerState(self.state.opened_at, self.state.trials + 1)
                return
            self._end_trial()

    def _record(self, attempt: Attempt) -> None:
        if attempt.made_progress:
            self.close()
        elif attempt.made_progress is False and not self.state.is_open:
            _log.warning("circuit_opened")
            self.state = BreakerState(self._clock())
            self._backoff.reset()
            self._pause = self._backoff.next()
            self._notify()
        elif attempt.made_progress is False and self._trial is attempt:
            self._pause = self._backoff.next()
        if self._trial is attempt:
            self._end_trial()

    def _end_trial(self) -> None:
        self._trial = None
        self._notify()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
