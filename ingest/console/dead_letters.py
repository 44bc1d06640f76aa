"""The dead letters as the console knows them: read from time to time, and kept, so that a page does not wait for that.

`ingest.dead` can only be read completely. On RabbitMQ, many messages take seconds, and are held meanwhile. So a page
shows what was read last, with its time. It is kept in a temporary database, so that memory does not grow with it.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec
import structlog

from ingest.domain.dead_letters import DeadLetter, redrive_blocker
from ingest.domain.display import redacted
from ingest.domain.errors import BrokerUnavailable, IngestError
from ingest.operations.dead_letters import Progress, Selection, details, select
from ingest.operations.find import MAX_DEAD_LETTERS, FoundDeadLetter, Matches, found_dead_letter
from ingest.operations.remedies import remedy
from ingest.operations.trim import OpenDeadLetters
from ingest.waiting import TimeSlices

MAX_ROWS: Final = 1_000_000
"""Dead letters that can be listed, shown and found; the latest. All are counted."""
_DELETION: Final = 1000
"""After so many dead letters, those beyond MAX_ROWS are deleted."""
MAX_GROUPS: Final = 10_000
"""Pairs of reason and customer that are counted one by one; further ones are counted together, without names."""
MAX_BYTES: Final = 1024**3
"""Bytes of details in the temporary file. A dead letter for which there is no room is listed without them."""
MIN_AGE: Final = 30.0
"""Seconds after which what was read is read again, if somebody looks at it."""
_SEARCH_PATIENCE: Final = 20.0
"""Seconds that a search waits for the first reading."""
_LONGEST_BODY: Final = 256 * 1024
"""Characters of a body that are kept."""
_LONGEST_INDENTED: Final = 64 * 1024

_log = structlog.get_logger(__name__)


class Row(msgspec.Struct, frozen=True):
    """A dead letter in a list. `number` counts in the order of the queue. `details` are those of
    `operations.dead_letters.details`, with `remedy` (what to do) and `blocker` (why it must not be redriven, or None);
    None if they are not kept.
    """

    number: int
    found: FoundDeadLetter
    details: dict[str, Any] | None


class ReasonGroup(msgspec.Struct):
    """The dead letters of one reason and customer. Times are in Unix seconds, None if they are not known."""

    reason: str
    cust_id: str
    count: int = 0
    oldest: float | None = None
    newest: float | None = None
    what_to_do: str = ""

    def add(self, dead: DeadLetter) -> None:
        """Count a dead letter."""
        self.count += 1
        self.what_to_do = remedy(dead)
        if dead.died_at is not None:
            self.oldest = min(dead.died_at, self.oldest or dead.died_at)
            self.newest = max(dead.died_at, self.newest or dead.died_at)


_SCHEMA: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE letter (number INTEGER PRIMARY KEY, id TEXT, reason TEXT, cust_id TEXT, found BLOB, details BLOB);
CREATE INDEX letter_id ON letter (id);
CREATE INDEX letter_group ON letter (reason, cust_id, number);
CREATE TABLE name (name TEXT, number INTEGER, cust_id TEXT);
CREATE INDEX name_name ON name (name);
"""
_COLUMNS: Final = "number, found, details"
_decode_found: Final = msgspec.json.Decoder(FoundDeadLetter).decode


class Snapshot:
    """What one reading has found, in a temporary database that is deleted when it is closed.

    Args:
        at: the time of the reading, Unix seconds.
        max_rows: see MAX_ROWS.
        max_bytes: see MAX_BYTES.
        max_groups: see MAX_GROUPS.
    """

    def __init__(self, at: float, max_rows: int, max_bytes: int, max_groups: int = MAX_GROUPS) -> None:
        self.at = at
        self.groups: dict[tuple[str, str], ReasonGroup] = {}
        self.count = 0
        self._max_rows = max_rows
        self._max_groups = max_groups
        self._free = max_bytes
        self._db = sqlite3.connect("", isolation_level=None)  # the empty name is a temporary file
        self._db.executescript(_SCHEMA)

    def add(self, dead: DeadLetter, trusted: frozenset[str]) -> None:
        """Add the next dead letter of the queue."""
        self.count += 1
        self._group(dead).add(dead)
        found, names = found_dead_letter(dead, trusted)
        # The id is not unique: copies have the same.
        row = (
            self.count,
            found.id,
            found.reason,
            found.cust_id,
            msgspec.json.encode(found),
            self._details(dead, trusted),
        )
        self._db.execute("INSERT INTO letter VALUES (?, ?, ?, ?, ?, ?)", row)
        self._db.executemany("INSERT INTO name VALUES (?, ?, ?)", [(name, self.count, found.cust_id) for name in names])
        if self.count % _DELETION == 0:
            self._delete_before(self.count - self._max_rows)

    def rows(
        self, reason: str | None = None, cust_id: str | None = None, *, limit: int, offset: int = 0
    ) -> tuple[list[Row], int]:
        """Return some of those of a reason and a customer, or of all, latest first; and how many there are."""
        condition, values = _where(reason=reason, cust_id=cust_id)
        count = self._db.execute(f"SELECT count(*) FROM letter {condition}", values).fetchone()[0]  # noqa: S608
        sql = f"SELECT {_COLUMNS} FROM letter {condition} ORDER BY number DESC LIMIT ? OFFSET ?"  # noqa: S608
        return [_row(*columns) for columns in self._db.execute(sql, [*values, limit, offset])], count

    def row(self, id_: str) -> Row | None:
        """Return the latest one with an id."""
        sql = f"SELECT {_COLUMNS} FROM letter WHERE id = ? ORDER BY number DESC LIMIT 1"  # noqa: S608
        columns = self._db.execute(sql, [id_]).fetchone()
        return None if columns is None else _row(*columns)

    def matches(self, names: AbstractSet[str], cust_id: str | None) -> Matches:
        """Return those that have one of the names, as `operations.find.Search`."""
        numbers: set[int] = set()
        condition, values = _where(cust_id=cust_id)
        sql = f"SELECT number FROM name {condition or 'WHERE true'} AND name = ?"  # noqa: S608
        for name in names:
            numbers.update(number for (number,) in self._db.execute(sql, [*values, name]))
        sql = f"SELECT {_COLUMNS} FROM letter WHERE number = ?"  # noqa: S608
        latest = sorted(numbers)[-MAX_DEAD_LETTERS:]
        found = [_row(*self._db.execute(sql, [number]).fetchone()).found for number in latest]
        return Matches(found, len(numbers))

    def close(self) -> None:
        """Delete the database."""
        self._db.close()

    def _group(self, dead: DeadLetter) -> ReasonGroup:
        key = dead.reason, dead.cust_id
        if key not in self.groups and len(self.groups) >= self._max_groups:
            key = "", ""
        return self.groups.setdefault(key, ReasonGroup(*key))

    def _details(self, dead: DeadLetter, trusted: frozenset[str]) -> bytes | None:
        fields = details(dead) | {"remedy": remedy(dead), "blocker": redrive_blocker(dead, trusted)}
        for holder in (fields, fields.get("submission", {})):
            for name in ("body", "body_base64"):
                if len(holder.get(name, "")) > _LONGEST_BODY:
                    holder[name] = holder[name][:_LONGEST_BODY]
                    fields["cut"] = True
        encoded = msgspec.json.encode(fields)
        if len(encoded) > self._free:
            return None
        self._free -= len(encoded)
        return encoded

    def _delete_before(self, number: int) -> None:
        sql = "SELECT total(length(details)) FROM letter WHERE number <= ?"
        self._free += int(self._db.execute(sql, [number]).fetchone()[0])
        for table in ("letter", "name"):
            self._db.execute(f"DELETE FROM {table} WHERE number <= ?", [number])  # noqa: S608


def _where(**values: str | None) -> tuple[str, list[str]]:
    """Return a condition that the columns have these values, and the values; None does not restrict."""
    given = {name: value for name, value in values.items() if value is not None}
    return ("WHERE " if given else "") + " AND ".join(f"{name} = ?" for name in given), list(given.values())


def _row(number: int, found: bytes, kept: bytes | None) -> Row:
    return Row(number, _decode_found(found), None if kept is None else msgspec.json.decode(kept))


class DeadLetters:
    """Reads `ingest.dead` when somebody looks at it, at most every `MIN_AGE` seconds.

    Args:
        open_dead_letters: opens the queue, as `BrokerBackend.open_dead_letters`.
        clock: Unix time in seconds.
        monotonic: monotonic time in seconds; it measures the age of what was read.
        max_rows: see MAX_ROWS.
        max_bytes: see MAX_BYTES.
    """

    def __init__(
        self,
        open_dead_letters: OpenDeadLetters,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._open = open_dead_letters
        self._clock = clock
        self._monotonic = monotonic
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._task: asyncio.Task[None] | None = None
        self._tried_at = float("-inf")
        self.snapshot: Snapshot | None = None
        self.progress = Progress()
        self.total = 0
        """The number of messages that the reading in progress will have read."""
        self.failure = ""
        """Why the last reading failed; empty if it succeeded."""

    @property
    def is_reading(self) -> bool:
        """Whether the queue is being read."""
        return self._task is not None

    async def look(self, patience: float) -> Snapshot | None:
        """Return what was read last; None if nothing was yet.

        If that is old, begin to read, and wait for the result for up to `patience` seconds.
        """
        if self._task is None and self._monotonic() - self._tried_at >= MIN_AGE:
            self._tried_at = self._monotonic()
            self._task = asyncio.create_task(self._read())
        if self._task is not None:
            await asyncio.wait([self._task], timeout=patience)
        return self.snapshot

    async def search(self, names: AbstractSet[str], customer: str | None) -> Matches:
        """Look in what was read last, as `operations.find.Search`. Raises BrokerUnavailable if nothing was read."""
        snapshot = await self.look(_SEARCH_PATIENCE)
        if snapshot is None:
            raise BrokerUnavailable(self.failure or "they are being read now, load the page again")
        return snapshot.matches(names, customer)

    async def close(self) -> None:
        """Stop reading, and delete what was read."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.snapshot is not None:
            self.snapshot.close()

    async def _read(self) -> None:
        snapshot = Snapshot(self._clock(), self._max_rows, self._max_bytes)
        self.progress, self.total = Progress(), 0
        try:
            async with self._open(change=False) as access:
                self.total = await access.queue.count()
                slices = TimeSlices()
                async for letters in select(access.queue, Selection(), access.trusted_users):
                    for dead in letters:
                        snapshot.add(dead, access.trusted_users)
                        await slices.between()  # other pages are answered meanwhile
                    self.progress.add(len(letters))
        except (IngestError, sqlite3.Error) as error:  # the latter: the disk is full
            _log.warning("dead_letters_not_read", error=str(error))
            self.failure = str(error)
            snapshot.close()
        except BaseException:
            snapshot.close()
            raise
        else:
            self.failure = ""
            previous, self.snapshot = self.snapshot, snapshot
            if previous is not None:
                previous.close()
        finally:
            self._task = None


def ordered(groups: Iterable[ReasonGroup]) -> list[ReasonGroup]:
    """Return groups, those with most dead letters first."""
    return sorted(groups, key=lambda group: (-group.count, group.reason, group.cust_id))


def details_facts(found: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Return what is shown of the details of a dead letter, by name, and its body; both without secrets."""
    found = redacted(found)
    submission: dict[str, Any] = found.get("submission", {})
    names = ("body", "body_base64")
    bodies = [str(holder.pop(name)) for holder in (found, submission) for name in names if name in holder]
    body = "".join(map(_indented, bodies)) + (
        "\n… the rest is not kept here: `ingest dlq export` has it" if found.get("cut") else ""
    )
    trimmed = found.get("trimmed")
    facts = {
        "reason": f"{found['reason']}: {found['error']}",
        "customer": found["cust_id"],
        "died": found["died_at"] or "unknown",
        **{f"error {number}": error.get("error", error) for number, error in enumerate(found["errors"], 1)},
        "what to do": found["remedy"],
        "redrive": f"not possible: {found['blocker']}" if found["blocker"] else "possible: `ingest dlq redrive`",
        "trimmed": trimmed and f"at {trimmed['at']}, the body had {trimmed['body_bytes']:,} bytes",
        "deliveries": found["deliveries"],
        **submission,
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}, body


def _indented(body: str) -> str:
    """Return JSON with an indent; anything else, or what is very long, as it is."""
    try:
        return msgspec.json.format(body, indent=2) if len(body) <= _LONGEST_INDENTED else body
    except ValueError:
        return body
