"""Forms chunks of tasks with keys that are the same in every run.

A task without a key gets one that is computed from its content and from the number of equal tasks before it in the
file. So a run can be interrupted, and lines can be corrected, added or removed in any order: a task that was accepted
is never submitted again, with or without a journal. Two equal lines are two tasks.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from asg_gateway._bulk.sources import Row
from asg_gateway._bulk.streams import RunError
from asg_gateway._tasks import ENVELOPE, MAX_BYTES, MAX_TASKS


@dataclass(slots=True)
class Item:
    """A task to send. Repeats of it have the same `identity`. `own_key`: its key was in the file."""

    number: int
    task: dict[str, Any]
    identity: str
    own_key: bool = True

    def original(self) -> dict[str, Any]:
        """Return the task as it was in the file."""
        return self.task if self.own_key else {k: v for k, v in self.task.items() if k != "idempotency_key"}


@dataclass(slots=True)
class Chunk:
    """The items of one request, and the invalid rows between them."""

    items: list[Item] = field(default_factory=list)
    invalid: list[Row] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The idempotency key of the request, if none of its items is refused before."""
        return digest_of(item.identity for item in self.items)

    def digest(self, destination: str) -> str:
        """Return the name of the chunk in the journal. It is the same for the same tasks and `destination`."""
        return digest_of([destination, *(item.identity for item in self.items)])


class Ordinals:
    """Counts occurrences. Above 16 MiB it uses disk, because a file may have more lines than fit into memory."""

    def __init__(self) -> None:
        # With an empty name SQLite uses a temporary file that is deleted when it is closed.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA cache_size = -16384")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def next(self, digest: bytes) -> int:
        """Return how often the digest occurred before. Raises RunError if the disk is full."""
        sql = "INSERT INTO seen VALUES (?, 0) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
        try:
            times: int = self._db.execute(sql, (digest,)).fetchone()[0]
        except sqlite3.Error as error:
            raise RunError(
                f"the temporary directory cannot hold the counts of equal lines ({error}): set TMPDIR to a directory "
                "with more space"
            ) from error
        return times

    def close(self) -> None:
        """Delete the file."""
        self._db.close()


def chunks(rows: Iterable[Row], namespace: str, size: int = MAX_TASKS) -> Iterator[Chunk]:
    """Yield chunks of at most `size` rows and 8 MiB. `namespace` is part of every generated key."""
    ordinals = Ordinals()
    chunk, count, free = Chunk(), 0, MAX_BYTES - ENVELOPE
    try:
        for row in rows:
            item, length = (None, 0) if row.task is None or row.faults else keyed(row, namespace, ordinals)
            if length > MAX_BYTES - ENVELOPE:
                allowed = MAX_BYTES - ENVELOPE
                row.faults = [("", f"the task is too large: {length:,} bytes; at most {allowed:,} are allowed")]
                item, length = None, 0
            # An invalid row takes a place, too: when it is corrected, only this chunk changes.
            if count == size or length > free:
                yield chunk
                chunk, count, free = Chunk(), 0, MAX_BYTES - ENVELOPE
            if item is None:
                chunk.invalid.append(row)
            else:
                chunk.items.append(item)
            count += 1
            free -= length
        if count:
            yield chunk
    finally:
        ordinals.close()


def keyed(row: Row, namespace: str, ordinals: Ordinals) -> tuple[Item, int]:
    """Return the row's task with a key, and at least its length in bytes when it is sent."""
    task = row.task or {}
    content = json.dumps(task, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    length = len(content) + 1
    if "idempotency_key" in task:
        return Item(row.number, task, task["idempotency_key"]), length
    digest = hashlib.sha256(content).digest()[:16]
    key = "bulk:" + digest_of([namespace, digest.hex(), str(ordinals.next(digest))])
    return Item(row.number, {**task, "idempotency_key": key}, key, own_key=False), length + len(key) + 24


def digest_of(parts: Iterable[str]) -> str:
    """Return a digest of 40 hex digits, in which the lengths of the parts are included: different lists differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()[:40]
