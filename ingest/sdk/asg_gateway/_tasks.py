"""Tasks as they are submitted, and how a large batch is cut into requests."""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict

MAX_TASKS = 1_000
MAX_BYTES = 8 * 1024 * 1024
_ROOM = 16 * 1024
"""Bytes left for what stands around the tasks."""
_MAX_KEY = 255

TaskType = Literal["image_classification", "text_classification", "sentiment", "moderation"]


class LabelSpec(TypedDict):
    """What to ask, and at least two answers to choose from. Further keys pass through."""

    question: str
    options: list[str]


class _TaskRequired(TypedDict):
    type: TaskType
    data_url: str
    label_spec: LabelSpec


class Task(_TaskRequired, total=False):
    """One task of a batch."""

    consensus_threshold: int
    callback_url: str
    idempotency_key: str


def encode(body: object) -> bytes:
    """JSON. Raises ValueError for what JSON cannot hold (NaN), TypeError for what is no JSON type."""
    return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def new_key() -> str:
    """A key for a call that was given none, so that its retries are safe."""
    return str(uuid.uuid4())


def part_key(key: str, index: int) -> str:
    """The key of one part of a split batch: the same each time, and never too long."""
    derived = f"{key}/{index}"
    return derived if len(derived) <= _MAX_KEY else hashlib.sha256(derived.encode()).hexdigest()


def split(tasks: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Parts of at most 1,000 tasks and 8 MiB, in order. No tasks: one empty part, for the gateway to refuse."""
    part: list[Mapping[str, Any]] = []
    size = 0
    for task in tasks:
        length = len(encode(task)) + 1
        if part and (len(part) == MAX_TASKS or size + length > MAX_BYTES - _ROOM):
            yield part
            part, size = [], 0
        part.append(task)
        size += length
    yield part
