"""Gathers what waits into cohorts. There are no timers: light traffic makes cohorts of one, at once."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Full(Exception):
    """Too much waits already."""


class Coalescer(Generic[T, R]):
    """Runs items in cohorts; while all slots are taken, what arrives waits for the next.

    Args:
        run: results of a cohort, in order; must not raise.
        size: most items in a cohort.
        slots: cohorts under way at once.
        waiting: most items that wait.
    """

    def __init__(self, run: Callable[[list[T]], Awaitable[list[R]]], *, size: int, slots: int, waiting: int) -> None:
        self._run = run
        self._size = size
        self._free = slots
        self._limit = waiting
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = contextvars.copy_context()

    async def submit(self, item: T) -> R:
        """The item's result. Cancelling stops the waiting, not the work. Raises Full."""
        if len(self._waiting) >= self._limit:
            raise Full
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._free:
            self._start()
        return await future

    async def drain(self) -> None:
        """Wait until nothing waits or is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self) -> None:
        self._free -= 1
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
            self._free += 1
