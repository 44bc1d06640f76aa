"""Waiting without copies of the same loop.

A backoff, time slices, a wait that ends with an event or a deadline, one that cancellation does not cut short, a
cancellation that does not cut another short, and a check for one that was lost.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from ingest.domain.ports import ConnectionState

T = TypeVar("T")


def _jitter() -> float:
    return random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


class Backoff:
    """Pauses that double from `first` to `longest`, each multiplied by a random factor between 0.5 and 1.5.

    Args:
        first: the first pause, in seconds, before jitter.
        longest: the longest pause, in seconds, before jitter.
        jitter: returns the factor; tests pass a constant.
    """

    __slots__ = ("_first", "_jitter", "_longest", "_pause")

    def __init__(self, first: float, longest: float, *, jitter: Callable[[], float] = _jitter) -> None:
        self._first = first
        self._longest = longest
        self._pause = first
        self._jitter = jitter

    def next(self) -> float:
        """Return the pause to make now, in seconds; the following one is twice as long, up to the longest."""
        pause = self._pause
        self._pause = min(pause * 2, self._longest)
        return pause * self._jitter()

    def reset(self) -> None:
        """Start again with the first pause."""
        self._pause = self._first


class TimeSlices:
    """Divides long work, so that the event loop runs everything else that is ready in between.

    Args:
        seconds: the length of a slice.
    """

    __slots__ = ("_clock", "_end", "_seconds")

    def __init__(self, seconds: float = 0.005) -> None:
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._end = self._clock() + seconds

    async def between(self) -> None:
        """Call it between two steps of the work: it lets others run if the slice is over."""
        if self._clock() > self._end:
            await asyncio.sleep(0)
            self._end = self._clock() + self._seconds


async def wait_for_event(event: asyncio.Event, timeout: float | None) -> bool:  # noqa: ASYNC109 - returns, never raises
    """Wait until the event is set; return False if `timeout` seconds pass first. None waits without a limit."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def to_the_end(step: Coroutine[Any, Any, T]) -> T:
    """Await a step that must not stop half-way. If the caller is cancelled meanwhile, cancel it after the step."""
    task = asyncio.create_task(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):  # cancelled once more
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # the cancellation has precedence, and asyncio must not log the error
        raise


def cancel_once(task: asyncio.Task[Any]) -> bool:
    """Cancel a task unless it was cancelled before, because a second one would interrupt its closing.

    Return whether it was cancelled now.
    """
    return not task.cancelling() and task.cancel()


def raise_if_cancelled() -> None:
    """Raise CancelledError if the current task has been cancelled.

    Call it after you await code that can lose a cancellation: aiormq raises its own error instead if the connection
    breaks at the same moment, and on Python 3.11 `asyncio.wait_for` returns if what it waits for ends at that moment.
    """
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError


def waiting_for(connections: Iterable[ConnectionState]) -> dict[str, str]:
    """Return the field of a log line that says what a process waits for after its start; none if it is connected."""
    return {} if all(state.connected for state in connections) else {"waiting_for": "broker"}
