"""The dead letters of one reading, in a temporary database, so that memory does not grow with them."""

import sqlite3
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec

from ingest.domain.customers import DAY
from ingest.domain.dead_letters import DeadLetter, redrive_blocker
from ingest.operations.dead_letters import Ages, Selection, details
from ingest.operations.find import MAX_DEAD_LETTERS, FoundDeadLetter, Matches, found_dead_letter
from ingest.operations.remedies import remedy

MAX_ROWS: Final = 1_000_000
"""Dead letters that can be listed, shown and found; the latest. All are counted."""
MAX_GROUPS: Final = 10_000
"""Pairs of reason and customer that are counted one by one; further ones are counted together, without names."""
MAX_BYTES: Final = 1024**3
"""Bytes of details in the temporary file. Further dead letters are listed without details."""
WEEK: Final = 7 * DAY
"""Seconds before a reading in which a dead letter is a recent one."""
_LONGEST_BODY: Final = 256 * 1024
"""Characters of a body that are kept."""


class Row(msgspec.Struct, frozen=True):
    """A dead letter with its details, or None if they are not kept.

    They are those of `operations.dead_letters.details`, with `remedy` (what to do) and `blocker` (why it must not be
    redriven, or None).
    """

    found: FoundDeadLetter
    details: dict[str, Any] | None


class SelectedCount(msgspec.Struct, frozen=True):
    """How many of the selected have one reason and one `blocker` (why they must not be redriven, or None)."""

    reason: str
    blocker: str | None
    count: int


class ReasonGroup(Ages):
    """The dead letters of one reason and customer.

    `recent` is how many of them died in the last seven days before the reading; for the `undated` ones that is unknown.
    """

    reason: str
    cust_id: str
    what_to_do: str = ""
    recent: int = 0

    def add(self, dead: DeadLetter, recent_since: float) -> None:
        """Count a dead letter. It is a recent one if it did not die before `recent_since`."""
        self.include(dead.died_at)
        self.what_to_do = remedy(dead)
        self.recent += dead.died_at is not None and dead.died_at >= recent_since


_SCHEMA: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE letter (
    number INTEGER PRIMARY KEY, id TEXT, reason TEXT, cust_id TEXT, died_at REAL, blocker TEXT, found BLOB, details BLOB
);
CREATE INDEX letter_id ON letter (id);
CREATE INDEX letter_group ON letter (reason, cust_id, number);
CREATE INDEX letter_customer ON letter (cust_id, number);
CREATE INDEX letter_count ON letter (reason, cust_id, blocker, died_at);
CREATE TABLE name (name TEXT, number INTEGER, cust_id TEXT);
CREATE INDEX name_name ON name (name);
CREATE INDEX name_number ON name (number);
"""
_EVERYTHING: Final = Selection()
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
        self._group(dead).add(dead, self.at - WEEK)
        found, names = found_dead_letter(dead, trusted)
        blocker = redrive_blocker(dead, trusted)
        # The id is not unique: copies have the same.
        row = (
            self.count,
            found.id,
            found.reason,
            found.cust_id,
            found.died_at,
            blocker,
            msgspec.json.encode(found),
            self._details(dead, blocker),
        )
        self._db.execute("INSERT INTO letter VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._db.executemany("INSERT INTO name VALUES (?, ?, ?)", [(name, self.count, found.cust_id) for name in names])
        if self.count > self._max_rows:
            self._delete(self.count - self._max_rows)

    def letters(
        self, selection: Selection = _EVERYTHING, *, limit: int, offset: int = 0
    ) -> tuple[list[FoundDeadLetter], int]:
        """Return some of the selected ones, latest first, and how many are selected. Ages are relative to `at`."""
        condition, values = _selected(selection, self.at)
        count = self._db.execute(f"SELECT count(*) FROM letter {condition}", values).fetchone()[0]  # noqa: S608
        sql = f"SELECT found FROM letter {condition} ORDER BY number DESC LIMIT ? OFFSET ?"  # noqa: S608
        return [_decode_found(found) for (found,) in self._db.execute(sql, [*values, limit, offset])], count

    def counts(self, selection: Selection) -> list[SelectedCount]:
        """Return how many are selected, by reason and by why they must not be redriven, most first."""
        condition, values = _selected(selection, self.at)
        sql = f"SELECT reason, blocker, count(*) AS n FROM letter {condition} GROUP BY 1, 2 ORDER BY n DESC, 1, 2"  # noqa: S608
        return [SelectedCount(*row) for row in self._db.execute(sql, values)]

    def row(self, id_: str) -> Row | None:
        """Return the latest one with an id."""
        sql = "SELECT found, details FROM letter WHERE id = ? ORDER BY number DESC LIMIT 1"
        columns = self._db.execute(sql, [id_]).fetchone()
        if columns is None:
            return None
        found, kept = columns
        return Row(_decode_found(found), None if kept is None else msgspec.json.decode(kept))

    def matches(self, names: AbstractSet[str], cust_id: str | None) -> Matches:
        """Return those that have one of the names, as `operations.find.Search`."""
        numbers: set[int] = set()
        sql = "SELECT number FROM name WHERE name = ? AND (?2 IS NULL OR cust_id = ?2)"
        for name in names:
            numbers.update(number for (number,) in self._db.execute(sql, [name, cust_id]))
        sql = "SELECT found FROM letter WHERE number = ?"
        latest = sorted(numbers)[-MAX_DEAD_LETTERS:]
        found = [_decode_found(self._db.execute(sql, [number]).fetchone()[0]) for number in latest]
        return Matches(found, len(numbers))

    def close(self) -> None:
        """Delete the database."""
        self._db.close()

    def _group(self, dead: DeadLetter) -> ReasonGroup:
        key = dead.reason, dead.cust_id
        if key not in self.groups and len(self.groups) >= self._max_groups:
            key = "", ""
        return self.groups.setdefault(key, ReasonGroup(*key))

    def _details(self, dead: DeadLetter, blocker: str | None) -> bytes | None:
        fields = details(dead) | {"remedy": remedy(dead), "blocker": blocker}
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

    def _delete(self, number: int) -> None:
        sql = "SELECT total(length(details)) FROM letter WHERE number = ?"
        self._free += int(self._db.execute(sql, [number]).fetchone()[0])
        for table in ("letter", "name"):
            self._db.execute(f"DELETE FROM {table} WHERE number = ?", [number])  # noqa: S608


def _selected(selection: Selection, now: float) -> tuple[str, list[str | float]]:
    """Return a selection as a condition of SQL, and its values."""
    conditions: list[str] = []
    values: list[str | float] = []
    for column, allowed in (("id", selection.ids), ("reason", selection.reasons)):
        if allowed:
            conditions.append(f"{column} IN ({', '.join('?' * len(allowed))})")
            values += sorted(allowed)
    for condition, value in (
        ("cust_id = ?", selection.customer),
        ("died_at <= ?", None if selection.older_than is None else now - selection.older_than),
        ("died_at >= ?", None if selection.newer_than is None else now - selection.newer_than),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    return f"WHERE {' AND '.join(conditions)}" if conditions else "", values


def ordered(groups: Iterable[ReasonGroup]) -> list[ReasonGroup]:
    """Return groups, those with most dead letters first."""
    return sorted(groups, key=lambda group: (-group.count, group.reason, group.cust_id))
