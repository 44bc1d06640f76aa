"""Rows to chunks of items, with keys that are the same in every run.

A task without a key of its own gets one made from what it says, and from how many equal ones came before it in the
file. So a run may be interrupted, lines may be mended, added or taken away, in any order: what was accepted once is
never submitted again, with or without a journal. Two equal lines are two tasks.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from asg_gateway._bulk.sources import Row
from asg_gateway._tasks import MAX_BYTES, MAX_TASKS, ROOM


@dataclass(slots=True)
class Item:
    """A task to send. `identity` is what repeats of it have in common; `own_key`: its key was in the file."""

    number: int
    task: dict[str, Any]
    identity: str
    own_key: bool = True

    def original(self) -> dict[str, Any]:
        """The task as it was in the file."""
        return self.task if self.own_key else {k: v for k, v in self.task.items() if k != "idempotency_key"}


@dataclass(slots=True)
class Chunk:
    """What goes into one request, and the rows between that cannot."""

    items: list[Item] = field(default_factory=list)
    wrong: list[Row] = field(default_factory=list)

    def digest(self, destination: str) -> str:
        """Names it in the journal: the same tasks for the same `destination`."""
        return digest_of([destination, *(item.identity for item in self.items)])


class Ordinals:
    """How often something was seen. On disk beyond 16 MiB: files may have more lines than memory has room for."""

    def __init__(self) -> None:
        # The empty name is a file of SQLite's own, gone when it is closed.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA cache_size = -16384")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def next(self, digest: bytes) -> int:
        """0 at the first time."""
        sql = "INSERT INTO seen VALUES (?, 0) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
        times: int = self._db.execute(sql, (digest,)).fetchone()[0]
        return times

    def close(self) -> None:
        """Free the file."""
        self._db.close()


def chunks(rows: Iterable[Row], namespace: str, size: int = MAX_TASKS) -> Iterator[Chunk]:
    """Cut rows into chunks of at most `size` rows and 8 MiB. `namespace` goes into every key that is made."""
    ordinals = Ordinals()
    chunk, count, room = Chunk(), 0, MAX_BYTES - ROOM
    try:
        for row in rows:
            item, length = (None, 0) if row.task is None or row.faults else keyed(row, namespace, ordinals)
            if length > MAX_BYTES - ROOM:
                row.faults = [("", f"the task must be smaller: it is {length:,} bytes, a request takes 8 MiB")]
                item, length = None, 0
            # A row that is wrong takes its place too: mended, it changes this chunk alone.
            if count == size or length > room:
                yield chunk
                chunk, count, room = Chunk(), 0, MAX_BYTES - ROOM
            if item is None:
                chunk.wrong.append(row)
            else:
                chunk.items.append(item)
            count += 1
            room -= length
        if count:
            yield chunk
    finally:
        ordinals.close()


def keyed(row: Row, namespace: str, ordinals: Ordinals) -> tuple[Item, int]:
    """The row's task with a key, and its length in bytes as it is sent, at least."""
    task = row.task or {}
    content = json.dumps(task, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    length = len(content) + 1
    if "idempotency_key" in task:
        return Item(row.number, task, task["idempotency_key"]), length
    digest = hashlib.sha256(content).digest()[:16]
    key = "bulk:" + digest_of([namespace, digest.hex(), str(ordinals.next(digest))])
    return Item(row.number, {**task, "idempotency_key": key}, key, own_key=False), length + len(key) + 24


def digest_of(parts: Iterable[str]) -> str:
    """40 hex digits; each part counts with its length, so that no two lists are alike."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()[:40]
