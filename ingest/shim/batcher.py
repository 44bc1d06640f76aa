"""Gathers what waits into cohorts. There are no timers: light traffic makes cohorts of one, at once."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class QueueFull(Exception):
    """Too much waits already."""


class MicroBatcher(Generic[T, R]):
    """Runs items in cohorts; while all slots are taken, what arrives waits for the next.

    Args:
        run: results of a cohort, in order; must not raise.
        size: most items in a cohort.
        slots: cohorts under way at once.
        crowd: while one is under way, a further cohort begins when so many items wait: large cohorts cost less.
        waiting: most items that wait.
        deadline: seconds for which an item's result is waited for.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[list[R]]],
        *,
        size: int,
        slots: int,
        waiting: int,
        deadline: float,
        crowd: int = 1,
    ) -> None:
        self._run = run
        self._size = size
        self._slots = slots
        self._crowd = crowd
        self._running = 0
        self._limit = waiting
        self._deadline = _Deadline(deadline)
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = contextvars.copy_context()

    async def submit(self, item: T) -> R:
        """The item's result. Giving up, or being cancelled, stops the waiting, not the work.

        Raises:
            Full: too much waits.
            TimeoutError: there is no result within the deadline.
        """
        if len(self._waiting) >= self._limit:
            raise QueueFull
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._deadline.watch(future)
        if not self._running or (self._running < self._slots and len(self._waiting) >= self._crowd):
            self._start()
        return await future

    async def drain(self) -> None:
        """Wait until nothing waits or is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self) -> None:
        self._running += 1
        # The task starts after the loop has read what has arrived with this item: they travel together.
        # Its log lines are not those of the request that happened to come first.
        task = asyncio.get_running_loop().create_task(self._work(), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        try:
            while self._waiting:
                cohort = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
                try:
                    results = await self._run([item for item, _ in cohort])
                except BaseException as error:
                    for _, future in cohort:
                        if not future.done():
                            future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
                    if not isinstance(error, Exception):
                        raise
                    continue
                for (_, future), result in zip(cohort, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        finally:
            self._running -= 1


class _Deadline:
    """One timer for all futures: their time limits are equal, so they run out in the order in which they came."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._watched: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._armed = False

    def watch(self, future: asyncio.Future[Any]) -> None:
        """Give it a TimeoutError unless it is done in time."""
        loop = future.get_loop()
        watched = self._watched
        while watched and watched[0][1].done():
            watched.popleft()
        watched.append((loop.time() + self._seconds, future))
        if not self._armed:
            self._armed = True
            loop.call_later(self._seconds, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        watched = self._watched
        while watched and (watched[0][1].done() or watched[0][0] <= loop.time()):
            _, future = watched.popleft()
            if not future.done():
                future.set_exception(TimeoutError())
        self._armed = bool(watched)
        if watched:
            loop.call_at(watched[0][0], self._expire, loop)
