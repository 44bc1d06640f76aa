"""A SQLite file with one connection, owned by one thread. The SQLite store and the embedded broker use it."""

import asyncio
import contextlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, TypeVar

from ingest.domain.errors import ConfigurationError, Unavailable

BUSY: Final = 5.0
"""Seconds to wait for the transaction of another process."""
_LEAST_FREE: Final = 256 * 1024
"""Bytes of free disk space below which a file counts as unavailable. Some changes may still succeed."""

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class SqliteFile:
    """Runs functions on the file, each in one transaction.

    Args:
        path: the database file. It and its directory are created if they do not exist, for their owner only.
        migrations: statements by schema version; those at index n change `user_version` n to n + 1.
        error: the exception for a file that is unavailable or closed.
        patience: seconds that a call waits for the transaction of another process.
    """

    def __init__(
        self, path: Path, migrations: Sequence[Sequence[str]], error: type[Unavailable], patience: float = BUSY
    ) -> None:
        self._patience = patience
        self._error = error
        self._path = path
        self._migrations = migrations
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    async def connect(self) -> None:
        """Open the file and migrate its schema. Raises `error`, ConfigurationError."""
        await self._on_thread(self._connect)

    async def connect_to_read(self) -> None:
        """Open the file read-only, even while another process uses it. Raises `error`, ConfigurationError."""
        await self._on_thread(self._connect_to_read)

    async def change(self, work: Work[T]) -> T:
        """Run a function under the write lock, all or nothing. Its changes are durable on return. Raises `error`."""
        return await self._on_thread(lambda: _transaction(self._opened(), work, "IMMEDIATE"))

    async def check(self) -> None:
        """Raise `error` unless a change is possible now: the disk has some space, and the write lock is available."""
        await self._on_thread(self._check)

    async def read(self, work: Work[T]) -> T:
        """Run a function that only reads, on one snapshot. Raises `error`."""
        return await self._on_thread(lambda: _transaction(self._opened(), work, "DEFERRED"))

    async def close(self) -> None:
        """Finish the work in progress and close. A second call has no effect. Later work raises `error`."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        except RuntimeError:
            return  # closed before
        self._thread.shutdown(wait=False)

    async def _on_thread(self, job: Callable[[], T]) -> T:
        begin = time.monotonic()

        def guarded() -> T:
            try:
                self._limit_wait(begin + self._patience)
                return job()
            except (sqlite3.Error, OSError) as error:
                raise self._error(f"SQLite file {self._path}: {error}") from error

        try:
            pending = asyncio.get_running_loop().run_in_executor(self._thread, guarded)
        except RuntimeError as error:  # the thread has ended
            raise self._error(f"SQLite file {self._path} is closed: the process is stopping") from error
        return await pending

    def _limit_wait(self, end: float) -> None:
        """Wait for locks only until `end`: calls queue for the thread while the file is locked, and all fail soon."""
        if self._connection is not None:
            milliseconds = max(0, int((end - time.monotonic()) * 1000))
            self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}")

    def _check(self) -> None:
        if shutil.disk_usage(self._path.parent).free < _LEAST_FREE:
            raise self._error(f"SQLite file {self._path}: its disk is full")
        _transaction(self._opened(), lambda _: None, "IMMEDIATE")

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise self._error(f"SQLite file {self._path} is closed: the process is stopping")
        return self._connection

    def _connect(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot create the directory of {self._path}: {error}") from error
        self._path.touch(mode=0o600)
        with contextlib.suppress(PermissionError):  # another user's file
            self._path.chmod(0o600)  # a file of an earlier version; SQLite's other files take its mode
        # Autocommit: only this module begins and ends transactions.
        db = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None)
        self._connection = db
        _use_wal(db)
        db.execute("PRAGMA synchronous = FULL")
        _transaction(db, self._migrate, "IMMEDIATE")

    def _connect_to_read(self) -> None:
        if not self._path.exists():
            raise ConfigurationError(f"{self._path} does not exist: no process has used it yet")
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        db = sqlite3.connect(uri, uri=True, timeout=BUSY, isolation_level=None)
        self._connection = db
        version = db.execute("PRAGMA user_version").fetchone()[0]
        self._refuse_newer(version)
        if version != len(self._migrations):
            raise ConfigurationError(
                f"{self._path} has schema {version}, this program reads {len(self._migrations)}: start `ingest dev` "
                "once, which migrates the file"
            )

    def _migrate(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        self._refuse_newer(version)
        for statements in self._migrations[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(self._migrations)}")

    def _refuse_newer(self, version: int) -> None:
        newest = len(self._migrations)
        if version > newest:
            raise ConfigurationError(
                f"{self._path} has schema {version}, this program knows up to {newest}: upgrade this program, or use "
                "another file"
            )

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _use_wal(db: sqlite3.Connection) -> None:
    # If several processes open a new file at once, SQLite does not wait for the lock in this statement.
    deadline = time.monotonic() + BUSY
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _transaction(db: sqlite3.Connection, work: Work[T], kind: Literal["IMMEDIATE", "DEFERRED"]) -> T:
    db.execute(f"BEGIN {kind}")
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result
