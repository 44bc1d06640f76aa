"""The ids that the service computes, so that a producer knows them without an answer.

They depend only on the customer and the idempotency key. The service has the same functions, because the SDK shares no
code with it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS: Final = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_SHIFTS: Final = tuple(range(120, -1, -10))
_VERSION_MASK: Final = ~((0xF << 76) | (0x3 << 62))
_V8: Final = (0x8 << 76) | (0x2 << 62)
_INDEX_MASK: Final = ~0x3FF
"""The last 10 bits of a batch's id are zero: they count its items."""


def task_id(cust_id: str, key: str) -> str:
    """Return the id of the task that the customer submits under the idempotency key."""
    return f"tsk_{_base32(_number('task', cust_id, key))}"


def batch_id(cust_id: str, key: str) -> str:
    """Return the id of the batch that the customer submits under the idempotency key."""
    return f"bat_{_base32(_number('batch', cust_id, key) & _INDEX_MASK)}"


def item_ids(cust_id: str, batch: str, tasks: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the ids of the items of a batch, in order.

    Args:
        cust_id: the customer.
        batch: the id of the batch.
        tasks: at most 1,000. Those without an `idempotency_key` get an id from the batch and their index.
    """
    prefix = f"tsk_{batch[4:-2]}"
    return tuple(
        task_id(cust_id, task["idempotency_key"]) if "idempotency_key" in task else prefix + _PAIRS[index]
        for index, task in enumerate(tasks)
    )


def _number(kind: str, cust_id: str, key: str) -> int:
    digest = hashlib.sha256(f"{kind}:{len(cust_id)}:{cust_id}:{key}".encode()).digest()
    return (int.from_bytes(digest[:16], "big") & _VERSION_MASK) | _V8


def _base32(number: int) -> str:
    return "".join([_PAIRS[(number >> shift) & 0x3FF] for shift in _SHIFTS])
