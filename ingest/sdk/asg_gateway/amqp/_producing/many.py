"""Submits the tasks of an iterable, several at a time, and yields the results in order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

from asg_gateway.amqp._producing.messages import SubmittedTask

Pair = tuple[str, Mapping[str, Any]]
"""The key and the task."""


async def submit_each(
    submit: Callable[[str, Mapping[str, Any]], Coroutine[Any, Any, SubmittedTask]],
    tasks: Iterable[Pair] | AsyncIterable[Pair],
    limit: int,
) -> AsyncGenerator[SubmittedTask, None]:
    """Submit each task, with `limit` of them in flight. An error is raised in its turn; calls after it are cancelled.

    Yields:
        The results in the order of the tasks.
    """
    in_flight: deque[asyncio.Task[SubmittedTask]] = deque()
    try:
        async for key, task in _asynchronous(tasks):
            if len(in_flight) >= limit:
                # Until half of them are done: RabbitMQ confirms many at once, if many are published at once.
                await asyncio.wait([in_flight[limit // 2]])
            while in_flight and in_flight[0].done():
                yield in_flight.popleft().result()
            if len(in_flight) >= limit:
                yield await in_flight.popleft()
            in_flight.append(asyncio.create_task(submit(key, task)))
        while in_flight:
            yield await in_flight.popleft()
    finally:
        for call in in_flight:
            call.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)


async def _asynchronous(tasks: Iterable[Pair] | AsyncIterable[Pair]) -> AsyncIterator[Pair]:
    if isinstance(tasks, AsyncIterable):
        async for pair in tasks:
            yield pair
    else:
        for pair in tasks:
            yield pair
