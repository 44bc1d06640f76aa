"""`SyncProducer`: a producer for code without an event loop."""

import asyncio
import ssl
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from asg_gateway.amqp._producing.many import Pair
from asg_gateway.amqp._producing.messages import SubmittedBatch, SubmittedTask
from asg_gateway.amqp._producing.producer import CONFIRM_TIMEOUT, DEADLINE, MAX_IN_FLIGHT, Producer, time_to_close

T = TypeVar("T")
_GROUP: Final = 500
"""Tasks that are handed over to the event loop together."""
_GROUP_SECONDS: Final = 0.05
"""A slow source fills a group for so long only."""
_Outcomes = list[SubmittedTask | BaseException]


class SyncProducer:
    """A `Producer` for code without an event loop. It runs one in a thread. Threads can share it.

    Arguments and errors are those of `Producer`.
    """

    def __init__(
        self,
        url: str,
        cust_id: str | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        deadline: float = DEADLINE,
        max_in_flight: int = MAX_IN_FLIGHT,
        confirm_timeout: float = CONFIRM_TIMEOUT,
    ) -> None:
        self._producer = Producer(
            url,
            cust_id,
            ssl_context=ssl_context,
            deadline=deadline,
            max_in_flight=max_in_flight,
            confirm_timeout=confirm_timeout,
        )
        self._groups = max(1, max_in_flight // _GROUP)
        self._closing = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = asyncio.new_event_loop()
        # A daemon thread: a script that does not close its producer must end nevertheless.
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="asg-gateway-producer", daemon=True)
        self._thread.start()

    @property
    def cust_id(self) -> str:
        """The customer."""
        return self._producer.cust_id

    def submit(
        self,
        task: Mapping[str, Any],
        *,
        key: str,
        created_at: datetime | int | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> SubmittedTask:
        """Submit one task, as `Producer.submit`. One call at a time is slow: `submit_many` is for many tasks."""
        return self._wait(
            self._producer.submit(task, key=key, created_at=created_at, traceparent=traceparent, tracestate=tracestate)
        )

    def submit_batch(
        self,
        tasks: Iterable[Mapping[str, Any]],
        *,
        key: str,
        callback_url: str | None = None,
        created_at: datetime | int | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> SubmittedBatch:
        """Submit tasks; the service accepts all or none of them. As `Producer.submit_batch`."""
        return self._wait(
            self._producer.submit_batch(
                list(tasks),
                key=key,
                callback_url=callback_url,
                created_at=created_at,
                traceparent=traceparent,
                tracestate=tracestate,
            )
        )

    def submit_many(
        self, tasks: Iterable[Pair], *, created_at: datetime | int | None = None
    ) -> Iterator[SubmittedTask]:
        """Submit any number of tasks, as `Producer.submit_many`. `tasks` is read in the caller's thread.

        Tasks are handed over in groups of up to 500: one is published at the latest when its source has yielded the
        next one or has ended.
        """
        in_flight: deque[Future[_Outcomes]] = deque()
        try:
            for group in _grouped(tasks):
                if len(in_flight) >= self._groups:
                    yield from _results(in_flight[0])
                    in_flight.popleft()
                in_flight.append(self._start(self._submit_group(group, created_at)))
            while in_flight:
                yield from _results(in_flight[0])
                in_flight.popleft()
        finally:
            for future in in_flight:
                future.cancel()

    def connect(self) -> None:
        """Connect now, as `Producer.connect`."""
        self._wait(self._producer.connect())

    def close(self, timeout: float | None = None) -> None:
        """Wait for the calls in progress, and close the connection. As `Producer.close`."""
        with self._closing:
            if self._loop is None:
                return
            loop = self._loop
            try:
                self._wait(self._producer.close(timeout))
            finally:
                self._loop = None
                loop.call_soon_threadsafe(loop.stop)
                self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(time_to_close(error))

    def __repr__(self) -> str:
        return f"Sync{self._producer!r}"

    async def _submit_group(self, group: Sequence[Pair], created_at: datetime | int | None) -> _Outcomes:
        calls = [self._producer.submit(task, key=key, created_at=created_at) for key, task in group]
        return await asyncio.gather(*calls, return_exceptions=True)

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        future = self._start(call)
        try:
            return future.result()
        finally:
            future.cancel()  # Ctrl-C, otherwise it is done

    def _start(self, call: Coroutine[Any, Any, T]) -> "Future[T]":
        if self._loop is None:
            call.close()
            raise RuntimeError("this producer is closed: create another one")
        return asyncio.run_coroutine_threadsafe(call, self._loop)


def _grouped(tasks: Iterable[Pair]) -> Iterator[list[Pair]]:
    group: list[Pair] = []
    first = 0.0
    for pair in tasks:
        if not group:
            first = time.monotonic()
        group.append(pair)
        if len(group) == _GROUP or time.monotonic() - first > _GROUP_SECONDS:
            yield group
            group = []
    if group:
        yield group


def _results(future: "Future[_Outcomes]") -> Iterator[SubmittedTask]:
    for outcome in future.result():
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        remaining = asyncio.all_tasks(loop)
        for task in remaining:
            task.cancel()
        if remaining:
            loop.run_until_complete(asyncio.wait(remaining))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
