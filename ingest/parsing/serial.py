"""Runs one item at a time. Customers get equal shares of the time."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, TypeVar

from ingest.fair_queue import FairQueue, QueueFull

T = TypeVar("T")
R = TypeVar("R")

_LONG: Final = 0.01
"""Seconds after which an item that holds the event loop has held it for long."""


class SerialExecutor(Generic[T, R]):
    """Runs one item at a time. Between two items the event loop runs everything else that is ready.

    Args:
        run: returns the result of an item.
        customer_of: returns the customer of an item.
        max_waiting: most items that wait.
        holds_loop: whether `run` holds the event loop. After a long hold, others then get the loop for as long.
    """

    def __init__(
        self,
        run: Callable[[T], Awaitable[R]],
        *,
        customer_of: Callable[[T], str],
        max_waiting: int,
        holds_loop: bool = False,
    ) -> None:
        self._run = run
        self._customer_of = customer_of
        self._holds_loop = holds_loop
        self._waiting: FairQueue[tuple[T, asyncio.Future[R]]] = FairQueue(max_waiting)
        self._shares = _TimeShares()
        self._task: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()

    async def submit(self, item: T) -> R:
        """Return the item's result. If the caller is cancelled before the item's turn, the item does not run.

        Raises:
            QueueFull: too many items wait. It may also be raised later, if the item gives way to another customer's.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        displaced = self._waiting.put(self._customer_of(item), (item, future))
        if displaced is not None and not displaced[1].done():
            displaced[1].set_exception(QueueFull())
        if self._task is None:
            # It has a context of its own: its log lines do not belong to the request that happened to arrive first.
            self._task = asyncio.get_running_loop().create_task(self._work(), context=self._context.copy())
        try:
            return await future
        finally:
            # The traceback of an error refers to this frame, and the future to the error. Such a cycle would keep the
            # item, which may have megabytes, until a full garbage collection.
            del future, item

    async def close(self) -> None:
        """Stop; what waits or runs is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._waiting:
                customer = self._shares.next(self._waiting.customers())
                item, future = self._waiting.take_from(customer)
                if future.done():
                    continue
                began = clock()
                await self._run_one(item, future)
                del item, future  # as in `submit`: on Python 3.12, the frames of the traceback refer to this one
                seconds = clock() - began
                self._shares.used(customer, seconds)
                await asyncio.sleep(seconds if self._holds_loop and seconds > _LONG else 0)
        finally:
            self._task = None
            for _, future in self._waiting.take(len(self._waiting)):
                future.cancel()

    async def _run_one(self, item: T, future: asyncio.Future[R]) -> None:
        try:
            result = await self._run(item)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            if not future.done():
                future.set_exception(error)
        except BaseException:
            future.cancel()
            raise
        else:
            if not future.done():
                future.set_result(result)
        finally:
            del future, item  # as in `submit`


class _TimeShares:
    """Chooses whose item is next: start-time fair queueing (Goyal, Vin and Cheng, 1996).

    Time is virtual: it advances to the start of each item, and a customer's next item starts when its last one ended.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[str, float] = {}
        """Only the ends that are in the future."""

    def next(self, customers: Iterable[str]) -> str:
        """Return the customer who has used the least; of several, the one that has waited longest."""
        customer = min(customers, key=self._start)
        self._now = self._start(customer)
        return customer

    def used(self, customer: str, seconds: float) -> None:
        """Note how long the item of the customer took that `next` has returned."""
        self._ends[customer] = self._now + seconds
        self._ends = {name: end for name, end in self._ends.items() if end > self._now}

    def _start(self, customer: str) -> float:
        return self._ends.get(customer, self._now)
