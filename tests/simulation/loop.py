"""An asyncio event loop with virtual time: if nothing is ready, time jumps to the next timer."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MAX_ITERATIONS: Final = 200_000
"""Iterations of the loop in one schedule. More mean that something never ends, or never waits."""


class Stuck(Exception):
    """The schedule cannot end: nothing is scheduled any more, or something runs without end."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs callbacks in the order that asyncio guarantees; `time` is virtual and starts at 0.

    It has no I/O. Nothing in it depends on the machine, so a run with the same seed is the same run.
    """

    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._iterations = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_numbers = count()
        self.errors: list[dict[str, Any]] = []
        """What asyncio reports: exceptions that nothing has retrieved."""
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self._now

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a callback. Timers of the same time fire in the order in which they were made."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._timer_numbers), timer))
        return timer

    def _run_once(self) -> None:
        """Run what is ready, as the method of the base class does; move the time instead of waiting."""
        self._iterations += 1
        if self._iterations > _MAX_ITERATIONS:
            raise Stuck(f"more than {_MAX_ITERATIONS:,} iterations at {self._now:.3f} s")
        timers, ready = self._timers, self._ready
        while timers and (timers[0][0] <= self._now or not ready):
            when, _, timer = heappop(timers)
            if not timer.cancelled():
                self._now = max(self._now, when)
                ready.append(timer)
        if not ready:
            raise Stuck(f"nothing is scheduled any more at {self._now:.3f} s")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _write_to_self(self) -> None:
        """Nothing: there are no other threads."""

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until `main` ends, cancel every other task, and close the loop. Raises what `main` raises, or Stuck."""
        asyncio.set_event_loop(self)
        try:
            return self.run_until_complete(main)
        finally:
            self._drop_everything()
            asyncio.set_event_loop(None)
            self.close()

    def _drop_everything(self) -> None:
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        for _ in range(20):
            if all(task.done() for task in tasks):
                break
            self._iterations = 0
            self.call_soon(self.stop)
            self.run_forever()
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not report it
