"""The types of tasks, and the splitting of large batches into requests."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypedDict

MAX_TASKS = 1_000
MAX_BYTES = 8 * 1024 * 1024
ENVELOPE = 16 * 1024
"""Bytes reserved for the part of a request that is not tasks."""
MAX_TASK_BYTES = MAX_BYTES - ENVELOPE - 1
"""The largest encoded task in bytes; one byte is for the comma after it."""
_MAX_KEY = 255

TaskType = Literal["image_classification", "text_classification", "sentiment", "moderation"]


class LabelSpec(TypedDict):
    """The question and at least two answers to choose from. Additional keys are passed on."""

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
    """Encode as JSON. Raises ValueError for a value that JSON cannot represent (NaN), TypeError for such a type."""
    return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_as_dict).encode()


def encode_item(index: int, task: object) -> bytes:
    """Encode one task of many. The errors, as of `encode`, name its index."""
    try:
        return encode(task)
    except TypeError as error:
        raise TypeError(f"tasks[{index}]: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tasks[{index}]: {error}") from error


def key_or_new(key: str | None) -> str:
    """Return the key, or a new one for None. Raises ValueError for an empty key."""
    if key == "":
        raise ValueError("idempotency_key must be 1 to 255 characters, or None for a new one")
    return str(uuid.uuid4()) if key is None else key


def part_key(key: str, index: int, size: Callable[[str], int] = len) -> str:
    """Return the key of one part of a split batch. It is deterministic, and its `size` is at most 255."""
    derived = f"{key}/{index}"
    return derived if size(derived) <= _MAX_KEY else hashlib.sha256(derived.encode()).hexdigest()


def split(tasks: Iterable[bytes], added: int = 0) -> list[list[bytes]]:
    """Cut encoded tasks into parts of at most 1,000 and 8 MiB, in order.

    No tasks make one empty part, for the gateway to refuse. Raises ValueError for a task that no part can hold.

    Args:
        tasks: the encoded tasks.
        added: bytes to count for each task in addition to its own.
    """
    parts: list[list[bytes]] = [[]]
    size = 0
    for index, task in enumerate(tasks):
        length = len(task) + 1 + added
        if len(task) > MAX_TASK_BYTES:
            raise ValueError(
                f"tasks[{index}] is too large: {len(task):,} bytes; at most {MAX_TASK_BYTES:,} are allowed"
            )
        if len(parts[-1]) == MAX_TASKS or size + length > MAX_BYTES - ENVELOPE:
            parts.append([])
            size = 0
        parts[-1].append(task)
        size += length
    return parts


def _as_dict(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a task contains a value of type {type(value).__name__}, which JSON cannot represent")
