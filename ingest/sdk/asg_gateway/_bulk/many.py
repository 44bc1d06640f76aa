"""`submit_many`: submits any number of tasks from Python code."""

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asg_gateway._async_client import AsyncASGGatewayClient
from asg_gateway._bulk.engine import run
from asg_gateway._bulk.http import HttpSender
from asg_gateway._bulk.items import Chunk, Item
from asg_gateway._results import BatchResult, Result
from asg_gateway._tasks import ENVELOPE, MAX_BYTES, MAX_TASK_BYTES, MAX_TASKS, encode_item


@dataclass(frozen=True, repr=False, eq=False)
class Submitted(Result):
    """The result of one chunk of tasks, as attributes and as the keys of a dict.

    Attributes:
        task_ids: the ids of the accepted tasks, by their index among all tasks.
        refused: (field, sentence) of each invalid field of the refused tasks, by index.
        results: the results of the requests, as `submit_batch` returns them.
    """

    task_ids: Mapping[int, str]
    refused: Mapping[int, tuple[tuple[str, str], ...]]
    results: tuple[BatchResult, ...]

    def _json(self) -> dict[str, Any]:
        return {"task_ids": dict(self.task_ids), "refused": dict(self.refused), "results": self.results}


async def submit_many(
    client: AsyncASGGatewayClient,
    tasks: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
    *,
    callback_url: str | None = None,
    idempotency_key: str | None = None,
    concurrency: int = 4,
) -> AsyncGenerator[Submitted, None]:
    """Submit any number of tasks, in chunks of up to 1,000 tasks and 8 MiB, with `concurrency` chunks in flight.

    An iterable is read in a thread, an asynchronous one in the event loop.

    A task that the gateway refuses does not affect its neighbours. Memory does not grow with the number of tasks. If
    the call is repeated with the same tasks and `idempotency_key`, nothing is submitted twice.

    Yields:
        The result of each chunk when it is known, in any order.

    Raises:
        ASGGatewayError: a problem that is not one of single tasks, such as the quota; raised after the chunks in
            flight. ValueError: a task exceeds 8 MiB, or JSON cannot represent a value. TypeError: JSON cannot
            represent a type.
    """
    if concurrency < 1:
        raise ValueError("concurrency must be 1 or more")
    if idempotency_key == "":
        raise ValueError("idempotency_key must be 1 to 255 characters, or None for a new one")
    chunker = _Chunker(idempotency_key or str(uuid.uuid4()))
    chunks = _async_chunks(tasks, chunker) if isinstance(tasks, AsyncIterable) else _chunks(tasks, chunker)
    async for _, outcome in run(HttpSender(client, callback_url), chunks, concurrency=concurrency):
        if outcome is not None:
            yield Submitted(
                {
                    item.number: task_id
                    for result, items in outcome.accepted
                    for item, task_id in zip(items, result.task_ids, strict=False)
                },
                {item.number: tuple(faults) for item, faults in outcome.refused},
                tuple(result for result, _ in outcome.accepted),
            )


class _Chunker:
    """Forms chunks. `key` is the key of all tasks together."""

    def __init__(self, key: str) -> None:
        self.chunk = Chunk()
        self._key = key
        self._free = MAX_BYTES - ENVELOPE
        self._index = 0

    def add(self, task: Mapping[str, Any]) -> Chunk | None:
        """Add a task; return the chunk before it if that is full. Raises ValueError, TypeError."""
        content = encode_item(self._index, task)
        if len(content) > MAX_TASK_BYTES:
            raise ValueError(
                f"tasks[{self._index}] is too large: {len(content):,} bytes; at most {MAX_TASK_BYTES:,} are allowed"
            )
        full = None
        if len(self.chunk.items) == MAX_TASKS or len(content) + 1 > self._free:
            full, self.chunk, self._free = self.chunk, Chunk(), MAX_BYTES - ENVELOPE
        # A copy, because the caller may change its task before it is sent.
        self.chunk.items.append(Item(self._index, json.loads(content), f"{self._key}/{self._index}"))
        self._free -= len(content) + 1
        self._index += 1
        return full


def _chunks(tasks: Iterable[Mapping[str, Any]], chunker: _Chunker) -> Iterator[Chunk]:
    for task in tasks:
        if (chunk := chunker.add(task)) is not None:
            yield chunk
    if chunker.chunk.items:
        yield chunker.chunk


async def _async_chunks(tasks: AsyncIterable[Mapping[str, Any]], chunker: _Chunker) -> AsyncIterator[Chunk]:
    async for task in tasks:
        if (chunk := chunker.add(task)) is not None:
            yield chunk
    if chunker.chunk.items:
        yield chunker.chunk
