"""Ids are computed, not looked up: the same customer and key always give the same id.

Ids are TypeIDs (https://github.com/jetify-com/typeid, version 0.3): a prefix and a UUID in 26 Crockford
base32 characters. Keyed ids are UUIDv8 from SHA-256, ids without a key UUIDv7 (RFC 9562).

The last 10 bits of a batch's id are zero. The id of an unkeyed item is the batch's number plus the item's index, so
that the id itself contains batch and index, and the ledger needs no record of the item.
"""

import hashlib
import os
import re
import time
from enum import StrEnum

from typing_extensions import Buffer


class SubmissionKind(StrEnum):
    """What a customer submits in one request or message."""

    TASK = "task"
    BATCH = "batch"


_PREFIX: dict[SubmissionKind, str] = {SubmissionKind.TASK: "tsk_", SubmissionKind.BATCH: "bat_"}
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Encoding two characters at a time costs half as much as one at a time. The last pair is the 10 bits of an item's
# index.
_PAIRS = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_INDEXES = {pair: index for index, pair in enumerate(_PAIRS)}
MAX_ITEMS = len(_PAIRS)
"""The number of items that a batch's id can count."""
_SHIFTS = tuple(range(120, -1, -10))
_ID = re.compile(r"(?:tsk|bat)_[0-7][0-9a-hjkmnp-tv-z]{25}")

_VERSION_MASK = ~((0xF << 76) | (0x3 << 62))
_V7 = (0x7 << 76) | (0x2 << 62)
_V8 = (0x8 << 76) | (0x2 << 62)


def keyed_id(kind: SubmissionKind, cust_id: str, key: str) -> str:
    """Return the id of a task or batch submitted by `cust_id` under the idempotency key `key`."""
    # The length is part of the hash, so that two different pairs of cust_id and key never give the same text.
    digest = hashlib.sha256(f"{kind}:{len(cust_id)}:{cust_id}:{key}".encode()).digest()
    return _id(kind, (int.from_bytes(digest[:16], "big") & _VERSION_MASK) | _V8)


def item_id(batch_id: str, index: int) -> str:
    """Return the id of the unkeyed item at `index` (from 0, below MAX_ITEMS) of a batch."""
    return f"tsk_{batch_id[4:-2]}{_PAIRS[index]}"


def batch_and_index(task_id: str) -> tuple[str, int]:
    """Return the inverse of `item_id`: (batch id, index).

    Every task id has one. Whether the batch exists, and whether the item is unkeyed, is in the ledger.
    """
    return f"bat_{task_id[4:-2]}{_PAIRS[0]}", _INDEXES[task_id[-2:]]


def fresh_id(kind: SubmissionKind) -> str:
    """Return a new, time-ordered id for an unkeyed submission."""
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    return _id(kind, (number & _VERSION_MASK) | _V7)


def is_id(kind: SubmissionKind, value: str) -> bool:
    """Return whether `value` has the form of an id of this kind."""
    return value.startswith(_PREFIX[kind]) and _ID.fullmatch(value) is not None


def is_submission_id(value: str) -> bool:
    """Return whether `value` has the form of an id of any kind."""
    return any(is_id(kind, value) for kind in SubmissionKind)


def fingerprint(canonical: Buffer) -> bytes:
    """SHA-256 of a canonical body, 32 bytes. Two bodies under one key are the same if their fingerprints are."""
    return hashlib.sha256(canonical).digest()


def _id(kind: SubmissionKind, number: int) -> str:
    if kind is SubmissionKind.BATCH:
        number &= -MAX_ITEMS
    return _PREFIX[kind] + "".join([_PAIRS[(number >> shift) & 0x3FF] for shift in _SHIFTS])
