"""`submit_many`: submits any number of tasks from Python code."""

import json
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asg_gateway._async_client import AsyncASGGatewayClient
from asg_gateway._bulk.engine import run
from asg_gateway._bulk.items import Chunk, Item
from asg_gateway._results import BatchResult
from asg_gateway._tasks import ENVELOPE, MAX_BYTES, MAX_TASK_BYTES, MAX_TASKS, encode


@dataclass(frozen=True)
class Submitted:
    """The result of one chunk of tasks.

    Attributes:
        task_ids: the ids of the accepted tasks, by their index among all tasks.
        refused: (field, sentence) of each invalid field of the refused tasks, by index.
        results: the results of the requests, as `submit_batch` returns them.
    """

    task_ids: Mapping[int, str]
    refused: Mapping[int, tuple[tuple[str, str], ...]]
    results: tuple[BatchResult, ...]


async def submit_many(
    client: AsyncASGGatewayClient,
    tasks: Iterable[Mapping[str, Any]],
    *,
    callback_url: str | None = None,
    idempotency_key: str | None = None,
    concurrency: int = 4,
) -> AsyncIterator[Submitted]:
    """Submit any number of tasks, in chunks of up to 1,000 tasks and 8 MiB, with `concurrency` chunks in flight.

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
    chunks = _chunks(tasks, idempotency_key or str(uuid.uuid4()))
    async for _, outcome in run(client, chunks, callback_url=callback_url, concurrency=concurrency):
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


def _chunks(tasks: Iterable[Mapping[str, Any]], key: str) -> Iterator[Chunk]:
    chunk, free = Chunk(), MAX_BYTES - ENVELOPE
    for index, task in enumerate(tasks):
        content = encode(task)
        if len(content) > MAX_TASK_BYTES:
            raise ValueError(
                f"tasks[{index}] is too large: {len(content):,} bytes; at most {MAX_TASK_BYTES:,} are allowed"
            )
        if len(chunk.items) == MAX_TASKS or len(content) + 1 > free:
            yield chunk
            chunk, free = Chunk(), MAX_BYTES - ENVELOPE
        # A copy, because the caller may change its task before it is sent.
        chunk.items.append(Item(index, json.loads(content), f"{key}/{index}"))
        free -= len(content) + 1
    if chunk.items:
        yield chunk
