"""The size of a task as the service counts it: canonical JSON with defaults, without the idempotency key."""

from collections.abc import Mapping
from typing import Any, Final

from asg_gateway._checks import Fault
from asg_gateway._tasks import encode

MAX_TASK: Final = 256 * 1024
"""Bytes of one task as canonical JSON."""
_DEFAULTS: Final = len('"consensus_threshold":3,')
_LARGEST_INT: Final = 2**53


def added_bytes(callback_url: str | None) -> int:
    """Return how many bytes the service adds at most to each task of a batch with this `callback_url`."""
    return _DEFAULTS + (0 if callback_url is None else len(_member("callback_url", callback_url)))


def size_fault(task: Mapping[str, Any], encoded: bytes, path: str, added: int = _DEFAULTS) -> Fault | None:
    """Return the fault of a task that is certainly too large.

    Args:
        task: a task without faults.
        encoded: the task as JSON.
        path: names the task.
        added: what the service adds at most, in bytes.
    """
    if len(encoded) + added <= MAX_TASK:
        return None
    size = len(encoded) + (0 if "consensus_threshold" in task else _DEFAULTS)
    if "callback_url" not in task:
        size += added - _DEFAULTS
    if "idempotency_key" in task:
        size -= len(_member("idempotency_key", task["idempotency_key"]))
    if size - _slack(task) <= MAX_TASK:
        return None
    return "", f"{path} has {size} bytes as canonical JSON, at most {MAX_TASK} are allowed"


def _member(name: str, value: str) -> bytes:
    return encode({name: value})[:-1]  # a comma takes the place of the braces


def _slack(value: object) -> int:
    """Return by how many bytes the service may write the numbers in a value shorter than Python does."""
    total, level = 0, [value]
    while level:
        one = level.pop()
        if isinstance(one, Mapping):
            level += one.values()
        elif isinstance(one, list | tuple):
            level += one
        elif isinstance(one, float) or (isinstance(one, int) and abs(one) > _LARGEST_INT):
            total += len(encode(one))
    return total
