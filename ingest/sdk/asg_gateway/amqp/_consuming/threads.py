"""Threads for blocking handlers. They are daemons, so a handler that hangs does not keep the process from ending."""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """A fixed number of threads, which are started when they are needed.

    Args:
        count: the most threads.
        at_end: called in each thread before it ends.
    """

    def __init__(self, count: int, at_end: Callable[[], None] = lambda: None) -> None:
        self._count = count
        self._at_end = at_end
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in a thread, with a copy of the caller's context variables; return what it returns."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def call() -> None:
            try:
                result = context.run(function, *arguments)
            except BaseException as error:  # noqa: BLE001 - raised in the caller
                _report(loop, _fail, done, error)
            else:
                _report(loop, _succeed, done, result)

        self._busy += 1
        if self._busy > len(self._threads) < self._count:
            self._start()
        self._calls.put(call)
        try:
            return await done
        finally:
            self._busy -= 1

    def close(self) -> None:
        """End each thread after its call, without waiting for it."""
        for _ in self._threads:
            self._calls.put(None)

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"asg-consumer-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
        self._at_end()


def _report(loop: asyncio.AbstractEventLoop, report: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(report, *arguments)
    except RuntimeError:  # the loop was closed: nothing waits for this call any more
        return


def _succeed(done: "asyncio.Future[Any]", result: object) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: "asyncio.Future[Any]", error: BaseException) -> None:
    if not done.done():
        done.set_exception(RuntimeError("StopIteration") if isinstance(error, StopIteration) else error)
