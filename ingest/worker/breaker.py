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
"""First and longest pause before another attempt, in seconds."""

Wait = Callable[[asyncio.Event, float | None], Awaitable[bool]]
"""Waits until the event is set; returns False if the given seconds pass first."""

_log = structlog.get_logger(__name__)


class Stopping(Exception):
    """The circuit is open, and the worker is stopping: there will be no attempt."""


class BreakerState(msgspec.Struct, frozen=True):
    """`opened_at`: monotonic seconds, None while closed. `trials`: attempts made since then."""

    opened_at: float | None = None
    trials: int = 0

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None


class Attempt:
    """One attempt under the breaker. The caller sets `made_progress`; it stays None if there was nothing to attempt."""

    __slots__ = ("made_progress",)

    def __init__(self) -> None:
        self.made_progress: bool | None = None


class CircuitBreaker:
    """One breaker for all queues of a worker, because they share the store and the publisher.

    An attempt without progress opens the circuit, one with progress closes it. While it is open, one trial attempt at a
    time is made, after a pause that doubles; all others wait. So an outage costs one call every few seconds, however
    many deliveries are held.

    Args:
        clock: monotonic seconds.
        wait: replaced in tests of time.
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
        self._trial: Attempt | None = None
        self._stopped = False
        self._change = asyncio.Event()

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[Attempt]:
        """Wait until an attempt may be made; its result decides on the next ones.

        Raises:
            Stopping: the circuit is open and `stop` was called. With a closed circuit attempts still finish.
        """
        attempt = Attempt()
        await self._admit(attempt)
        try:
            yield attempt
        finally:
            self._record(attempt)

    def stop(self) -> None:
        """End every wait."""
        self._stopped = True
        self._notify()

    def close(self) -> None:
        """Close the circuit: the dependencies are known to be available again."""
        self._close()
        self._notify()

    async def open_for(self, seconds: float) -> bool:
        """Wait until the circuit has been open for so many seconds without a break;

        return False if the worker stops.
        """
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
        """Wait at most so many seconds;

        return whether the circuit closed, or the worker stopped, before they passed.
        """
        end = self._clock() + seconds
        while self.state.is_open and not self._stopped and (remaining := end - self._clock()) > 0:
            await self._wait(self._change, remaining)
        return not self.state.is_open or self._stopped

    async def _admit(self, attempt: Attempt) -> None:
        while self.state.is_open:
            if self._stopped:
                raise Stopping
            if self._trial is not None:
                await self._wait(self._change, None)
                continue
            self._trial = attempt
            try:
                await self.closed_within(self._backoff.next())
            except BaseException:
                self._end_trial()
                raise
            if self.state.is_open and not self._stopped:
                self.state = BreakerState(self.state.opened_at, self.state.trials + 1)
                return
            self._end_trial()

    def _record(self, attempt: Attempt) -> None:
        if not self.state.is_open and self._trial is None and attempt.made_progress is not False:
            return
        if attempt.made_progress:
            self._close()
        elif attempt.made_progress is False and not self.state.is_open:
            _log.warning("circuit_opened")
            self.state = BreakerState(self._clock())
            self._backoff.reset()
        if self._trial is attempt:
            self._trial = None
        self._notify()

    def _close(self) -> None:
        if self.state.opened_at is not None:
            seconds = round(self._clock() - self.state.opened_at, 1)
            _log.warning("circuit_closed", seconds=seconds, trials=self.state.trials)
            self.state = BreakerState()
            self._backoff.reset()

    def _end_trial(self) -> None:
        self._trial = None
        self._notify()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
