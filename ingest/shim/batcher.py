"""Forms micro-batches from what waits. Under light traffic, an item runs alone, at once.

Items wait in a `FairQueue`, so a customer with many connections delays only itself.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from ingest.fair_queue import FairQueue, QueueFull

T = TypeVar("T")
R = TypeVar("R")


_QUIET_TURNS: Final = 4
"""Turns of the event loop without a new item after which no more are expected. A client that submits again when it has
its answer needs some: one sends the answer, the next reads the request."""


class MicroBatcher(Generic[T, R]):
    """Runs items in micro-batches. Items that arrive while all slots are taken wait for the next micro-batch.

    Args:
        run: returns the results of a micro-batch, in order. An exception becomes the result of every item.
        max_batch: most items in a micro-batch.
        max_concurrency: most micro-batches that run at once.
        max_queue: most items that wait.
        customer_of: returns the customer of an item.
        deadline: how long a caller waits for its result, in seconds.
        min_batch: a micro-batch with fewer items starts only if none runs and no more items arrive at the moment. Large
            ones cost less per item.
        patience: seconds after which another micro-batch starts with fewer than `min_batch` items: the running one may
            wait for something that the others do not need.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[list[R]]],
        *,
        max_batch: int,
        max_concurrency: int,
        max_queue: int,
        deadline: float,
        min_batch: int = 1,
        patience: float = 0.05,
        customer_of: Callable[[T], str] = lambda _: "",
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_concurrency = max_concurrency
        self._customer_of = customer_of
        self._min_batch = min_batch
        self._patience = patience
        self._running = 0
        self._collecting = False
        """Whether a task is about to start a micro-batch."""
        self._started = 0.0
        """When the latest micro-batch started."""
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = _Deadline(deadline)
        self._waiting: FairQueue[tuple[T, asyncio.Future[R]]] = FairQueue(max_queue)
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = contextvars.copy_context()

    async def submit(self, item: T) -> R:
        """Return the item's result. If the caller gives up or is cancelled, the item still runs.

        Raises:
            QueueFull: too many items wait. It may also be raised later, if the item gives way to another customer's.
            TimeoutError: there was no result within the deadline.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        displaced = self._waiting.put(self._customer_of(item), (item, future))
        if displaced is not None and not displaced[1].done():
            displaced[1].set_exception(QueueFull())
        self._deadline.watch(future)
        self._start_if_due()
        try:
            return await future
        finally:
            # The traceback of an error refers to this frame, and the future to the error. Such a cycle would keep the
            # item until a full garbage collection.
            del future, item

    async def drain(self) -> None:
        """Wait until no item waits or runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start_if_due(self) -> None:
        """Start a micro-batch if none runs, enough items wait, or the latest one takes long; otherwise look again."""
        if self._collecting or not self._waiting or self._running >= self._max_concurrency:
            return
        loop, overdue = asyncio.get_running_loop(), self._started + self._patience
        if not self._running or len(self._waiting) >= self._min_batch or loop.time() >= overdue:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_at(overdue, self._look_again)

    def _start(self) -> None:
        self._collecting = True
        # It has a context of its own: its log lines do not belong to the request that happened to arrive first.
        task = asyncio.get_running_loop().create_task(self._work(), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _look_again(self) -> None:
        self._timer = None
        self._start_if_due()

    async def _work(self) -> None:
        try:
            await self._collect()
        finally:
            self._collecting = False
        batch = self._waiting.take(self._max_batch)
        self._running += 1
        self._started = asyncio.get_running_loop().time()
        self._start_if_due()  # for what the micro-batch has no room for
        try:
            results = await self._run([item for item, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            del batch, future  # as in `submit`
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        finally:
            self._running -= 1
        self._start_if_due()

    async def _collect(self) -> None:
        """Wait until enough items wait, or no more arrive at the moment."""
        seen = 0
        while seen < len(self._waiting) < self._min_batch:
            seen = len(self._waiting)
            for _ in range(_QUIET_TURNS):
                await asyncio.sleep(0)


class _Deadline:
    """One timer for all futures: every future has the same time limit, so they expire in the order of their arrival."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._watched: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._armed = False

    def watch(self, future: asyncio.Future[Any]) -> None:
        """Set a TimeoutError on the future if it is not done in time."""
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
