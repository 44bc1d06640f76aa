"""The store on one SQLite file: the default of `ingest dev`.

Every call is one transaction for its whole list. Other processes may use the same file: a change takes the write lock
first (BEGIN IMMEDIATE), so that reading and writing in it are atomic. With WAL and synchronous=FULL, the result of a
call survives a power failure.

Entries and customers are JSON, so that `sqlite3 FILE` shows them. An entry is stored with the time at which it expires;
from then on it reads as absent. Each claim deletes a bounded number of expired entries. The same holds for counters of
permits.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from ingest.domain.customers import LAST_CHARACTER, ApiKey, Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Entry, Step, StoredEntry, accepted, after, takes_effect
from ingest.domain.rates import PermitClaim
from ingest.sqlite.file import SqliteFile

_MIGRATIONS: Final = (
    (
        "CREATE TABLE ledger (id TEXT PRIMARY KEY, expires INTEGER NOT NULL, entry TEXT NOT NULL)",
        "CREATE INDEX ledger_expires ON ledger (expires)",
        "CREATE TABLE quota (cust_id TEXT, month TEXT, used INTEGER NOT NULL, PRIMARY KEY (cust_id, month))",
        "CREATE TABLE customer (cust_id TEXT PRIMARY KEY, customer TEXT NOT NULL)",
        """CREATE TABLE api_key (key_id TEXT PRIMARY KEY, cust_id TEXT NOT NULL,
             key_hash BLOB NOT NULL UNIQUE, created_at INTEGER NOT NULL, revoked INTEGER NOT NULL)""",
        "CREATE INDEX api_key_customer ON api_key (cust_id)",
    ),
    (
        """CREATE INDEX ledger_in_doubt ON ledger (expires)
             WHERE json_extract(entry, '$.phase') = 'claimed' AND json_extract(entry, '$.charged') > 0""",
    ),
    (
        "ALTER TABLE api_key ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE api_key ADD COLUMN last_used_at INTEGER",
    ),
    (
        """CREATE TABLE rate (cust_id TEXT, seconds INTEGER, number INTEGER, claimed INTEGER NOT NULL,
             expires INTEGER NOT NULL, PRIMARY KEY (cust_id, seconds, number))""",
        "CREATE INDEX rate_expires ON rate (expires)",
    ),
    ("CREATE TABLE producer (cust_id TEXT PRIMARY KEY, weight REAL NOT NULL)",),
)

_KEY_COLUMNS: Final = ", ".join(ApiKey.__struct_fields__)
"""Columns have the names of the fields."""

_encode = msgspec.json.encode
_entry = msgspec.json.Decoder(Entry).decode
_decode_customer = msgspec.json.Decoder(Customer).decode


class SqliteStore:
    """`domain.ports.Store` on a file. Use `open`."""

    def __init__(self, file: SqliteFile, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock

    @classmethod
    async def open(cls, path: Path | str, *, clock: Callable[[], float] = time.time) -> Self:
        """Open the file, or create it and its directory; migrate its schema.

        Args:
            path: the database file.
            clock: Unix time in seconds; it decides what has expired.

        Raises:
            ConfigurationError: the directory cannot be created, or a newer version has written the file.
            StoreUnavailable: the file cannot be opened, is locked, or is not a database.
        """
        file = SqliteFile(Path(path), _MIGRATIONS, StoreUnavailable)
        try:
            await file.connect()
        except BaseException:
            await file.close()
            raise
        return cls(file, clock)

    @classmethod
    async def read_only(cls, path: Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Open a file that exists to read it. Arguments and errors as `open`."""
        file = SqliteFile(path, _MIGRATIONS, StoreUnavailable)
        try:
            await file.connect_to_read()
        except BaseException:
            await file.close()
            raise
        return cls(file, clock)

    # Ledger

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        now = self._now()
        return await self._file.change(lambda db: _claim(db, entries, now)) if entries else []

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        now = self._now()
        return await self._file.read(lambda db: [_stored(db, id_, now) for id_ in ids]) if ids else []

    async def inspect(self, ids: Sequence[str]) -> list[StoredEntry | None]:
        now = self._now()
        return await self._file.read(lambda db: [_inspect(db, id_, now) for id_ in ids]) if ids else []

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        now = self._now()
        return await self._file.change(lambda db: [_apply(db, c, now) for c in changes]) if changes else []

    async def in_doubt(self, idle: int) -> list[Entry]:
        now = self._now()
        return await self._file.read(lambda db: _in_doubt(db, idle, now))

    async def accept(self, entries: Sequence[Entry]) -> list[bool]:
        now = self._now()
        if entries:
            await self._file.change(lambda db: _accept(db, entries, now))
        return [True] * len(entries)

    # Quotas

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        return await self._file.change(lambda db: [_charge(db, c) for c in charges]) if charges else []

    async def refund(self, charges: Sequence[Charge]) -> None:
        sql = "UPDATE quota SET used = max(0, used - ?) WHERE cust_id = ? AND month = ?"
        rows = [(charge.count, charge.cust_id, charge.month) for charge in charges]
        if rows:
            await self._file.change(lambda db: db.executemany(sql, rows))

    async def used(self, cust_id: str, month: str) -> int:
        (used,) = await self.used_by([cust_id], month)
        return used

    async def used_by(self, cust_ids: Sequence[str], month: str) -> list[int]:
        sql = "SELECT coalesce(sum(used), 0) FROM quota WHERE cust_id = ? AND month = ?"
        return await self._file.read(lambda db: [_number(db, sql, (cust_id, month)) for cust_id in cust_ids])

    # Rates

    async def claim_permits(self, claims: Sequence[PermitClaim]) -> list[int]:
        now = self._now()
        return await self._file.change(lambda db: _claim_permits(db, claims, now)) if claims else []

    # Registry

    async def customer(self, cust_id: str) -> Customer | None:
        sql = "SELECT customer FROM customer WHERE cust_id = ?"
        row = await self._file.read(lambda db: db.execute(sql, (cust_id,)).fetchone())
        return _customer(cust_id, row[0]) if row else None

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        sql = "SELECT cust_id, customer FROM api_key JOIN customer USING (cust_id) WHERE key_hash = ? AND NOT revoked"
        row = await self._file.read(lambda db: db.execute(sql, (key_hash,)).fetchone())
        return _customer(*row) if row else None

    async def customers(self, prefix: str = "", limit: int | None = None) -> list[Customer]:
        sql = "SELECT cust_id, customer FROM customer WHERE cust_id BETWEEN ? AND ? ORDER BY cust_id LIMIT ?"
        bounds = (prefix, prefix + LAST_CHARACTER, -1 if limit is None else limit)
        return [_customer(*row) for row in await self._file.read(lambda db: db.execute(sql, bounds).fetchall())]

    async def save_customer(self, customer: Customer) -> None:
        sql = "INSERT OR REPLACE INTO customer VALUES (?, ?)"
        row = (customer.cust_id, _encode(customer).decode())
        await self._file.change(lambda db: db.execute(sql, row))

    async def producers(self) -> dict[str, float]:
        sql = "SELECT cust_id, customer FROM producer LEFT JOIN customer USING (cust_id) ORDER BY cust_id"
        rows = await self._file.read(lambda db: db.execute(sql).fetchall())
        return {cust_id: _weight(cust_id, text) for cust_id, text in rows}

    async def add_producer(self, cust_id: str) -> None:
        sql = "INSERT OR IGNORE INTO producer VALUES (?, 1.0)"  # older versions take the weight from here
        await self._file.change(lambda db: db.execute(sql, (cust_id,)))

    async def remove_producer(self, cust_id: str) -> None:
        await self._file.change(lambda db: db.execute("DELETE FROM producer WHERE cust_id = ?", (cust_id,)))

    async def keys(self, cust_id: str) -> list[ApiKey]:
        sql = f"SELECT {_KEY_COLUMNS} FROM api_key WHERE cust_id = ? ORDER BY created_at, key_id"  # noqa: S608
        rows = await self._file.read(lambda db: db.execute(sql, (cust_id,)).fetchall())
        return [_key(dict(zip(ApiKey.__struct_fields__, row, strict=True))) for row in rows]

    async def key_counts(self, cust_ids: Sequence[str]) -> list[int]:
        sql = "SELECT count(*) FROM api_key WHERE cust_id = ? AND NOT revoked"
        return await self._file.read(lambda db: [_number(db, sql, (cust_id,)) for cust_id in cust_ids])

    async def record_key_use(self, key_ids: Sequence[str], used_at: int) -> None:
        sql = "UPDATE api_key SET last_used_at = ? WHERE key_id = ?"
        rows = [(used_at, key_id) for key_id in key_ids]
        await self._file.change(lambda db: db.executemany(sql, rows))

    async def save_key(self, key: ApiKey) -> None:
        sql = f"INSERT OR REPLACE INTO api_key ({_KEY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
        await self._file.change(lambda db: db.execute(sql, msgspec.structs.astuple(key)))

    async def revoke_key(self, key_id: str) -> bool:
        sql = "UPDATE api_key SET revoked = 1 WHERE key_id = ?"
        return await self._file.change(lambda db: db.execute(sql, (key_id,)).rowcount == 1)

    # Store

    async def ready(self) -> None:
        """Raise StoreUnavailable unless a change is possible now."""
        await self._file.check()

    async def close(self) -> None:
        """Finish the calls in progress and close. A second call has no effect. Later calls raise StoreUnavailable."""
        await self._file.close()

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _number(db: sqlite3.Connection, sql: str, values: Sequence[str]) -> int:
    return int(db.execute(sql, values).fetchone()[0])


def _key(columns: dict[str, Any]) -> ApiKey:
    return ApiKey(**columns | {"revoked": bool(columns["revoked"])})


def _customer(cust_id: str, record: str) -> Customer:
    try:
        return _decode_customer(record)
    except msgspec.DecodeError as error:
        raise StoreUnavailable(f"the record of customer {cust_id} cannot be read: {error}") from error


def _weight(cust_id: str, record: str | None) -> float:
    """Return the weight of a producer; 1 if its customer cannot be read, because then its submissions wait anyway."""
    try:
        return _customer(cust_id, record).weight if record else 1.0
    except StoreUnavailable:
        return 1.0


def _stored(db: sqlite3.Connection, id_: str, now: int) -> Entry | None:
    row = db.execute("SELECT entry FROM ledger WHERE id = ? AND expires > ?", (id_, now)).fetchone()
    return _entry(row[0]) if row else None


def _inspect(db: sqlite3.Connection, id_: str, now: int) -> StoredEntry | None:
    sql = "SELECT entry, expires FROM ledger WHERE id = ? AND expires > ?"
    row = db.execute(sql, (id_, now)).fetchone()
    if row is None:
        return None
    entry = _entry(row[0])
    return StoredEntry(entry, _unchanged_for(entry, row[1], now) / 1000)


def _unchanged_for(entry: Entry, expires: int, now: int) -> int:
    """Return the age of an entry, in milliseconds."""
    return now - (expires - entry.time_to_live * 1000)


def _write(db: sqlite3.Connection, entry: Entry, now: int) -> Entry:
    row = (entry.id, now + entry.time_to_live * 1000, _encode(entry).decode())
    db.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?, ?)", row)
    return entry


def _claim(db: sqlite3.Connection, entries: Sequence[Entry], now: int) -> list[Entry]:
    # Two are deleted for each one that is created: expired entries cannot accumulate, and no call deletes many.
    sql = "DELETE FROM ledger WHERE rowid IN (SELECT rowid FROM ledger WHERE expires <= ? LIMIT ?)"
    db.execute(sql, (now, 2 * len(entries)))
    return [
        _stored(db, entry.id, now) or _write(db, msgspec.structs.replace(entry, generation=1), now) for entry in entries
    ]


def _apply(db: sqlite3.Connection, change: Change, now: int) -> Entry | None:
    row = db.execute(
        "SELECT entry, expires FROM ledger WHERE id = ? AND expires > ?", (change.entry.id, now)
    ).fetchone()
    stored = _entry(row[0]) if row else None
    if stored is None or not takes_effect(change, stored, _unchanged_for(stored, row[1], now)):
        return None
    if change.step is Step.FORGET:
        db.execute("DELETE FROM ledger WHERE id = ?", (change.entry.id,))
        return stored
    return _write(db, after(change, stored.generation + 1), now)


def _in_doubt(db: sqlite3.Connection, idle: int, now: int) -> list[Entry]:
    sql = """SELECT entry, expires FROM ledger WHERE expires > ?
             AND json_extract(entry, '$.phase') = 'claimed' AND json_extract(entry, '$.charged') > 0"""
    entries = [(_entry(text), expires) for text, expires in db.execute(sql, (now,))]
    return [entry for entry, expires in entries if _unchanged_for(entry, expires, now) >= idle]


def _accept(db: sqlite3.Connection, entries: Sequence[Entry], now: int) -> None:
    for entry in entries:
        stored = _stored(db, entry.id, now)
        generation = stored.generation + 1 if stored else 1
        latest = stored if stored and entry.generation else entry
        _write(db, msgspec.structs.replace(accepted(latest), generation=generation), now)


def _charge(db: sqlite3.Connection, charge: Charge) -> bool:
    db.execute("INSERT OR IGNORE INTO quota VALUES (?, ?, 0)", (charge.cust_id, charge.month))
    sql = "UPDATE quota SET used = used + ? WHERE cust_id = ? AND month = ? AND used + ? <= ?"
    row = (charge.count, charge.cust_id, charge.month, charge.count, charge.limit)
    return db.execute(sql, row).rowcount == 1


def _claim_permits(db: sqlite3.Connection, claims: Sequence[PermitClaim], now: int) -> list[int]:
    sql = "DELETE FROM rate WHERE rowid IN (SELECT rowid FROM rate WHERE expires <= ? LIMIT ?)"
    db.execute(sql, (now, 2 * len(claims)))
    return [_claim_permit(db, claim, now) for claim in claims]


def _claim_permit(db: sqlite3.Connection, claim: PermitClaim, now: int) -> int:
    sql = """INSERT INTO rate VALUES (:cust_id, :seconds, :number, :count, :expires) ON CONFLICT DO UPDATE
             SET claimed = iif(expires > :now, claimed, 0) + :count, expires = :expires RETURNING claimed"""
    row = msgspec.structs.asdict(claim) | {"now": now, "expires": now + claim.time_to_live * 1000}
    return int(db.execute(sql, row).fetchone()[0])
