"""Deduplication in the handler's own transaction, on any connection of DB-API 2.0."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from asg_gateway.amqp._dedupe.driver import (
    ENDED,
    Connection,
    Driver,
    checked_age,
    checked_paramstyle,
    checked_table,
    errors_before_handler,
    is_kind,
    transient_errors,
)
from asg_gateway.amqp._dedupe.strategy import Dedupe, DedupeUnavailableError, Handler, RunInThread, call_blocking
from asg_gateway.amqp._events import Event

TABLE: Final = "asg_processed_events"
KEEP: Final = timedelta(days=30)
"""How long ids are kept at least: a copy can come as late as a message can wait in a queue."""


class SqlDedupe(Dedupe):
    """Inserts the event's id in the transaction in which the handler does its work.

    The handler is called as `handler(event, connection)` in a thread, and must neither commit nor roll back. Each
    thread has one connection. A broken one is replaced. The ids are kept per queue (that of `X.parked` is `X`), so
    consumers of different queues may share a table. Two jobs on copies of one queue need tables of their own.

    Args:
        connect: opens a connection without autocommit, such as `lambda: sqlite3.connect("app.db")`.
        table: the name of the table, perhaps with its schema. It is created if it is missing.
        paramstyle: how the driver writes parameters (PEP 249); by default what its module says.

    Raises:
        ValueError: the name of the table or the paramstyle is invalid.
    """

    _takes = ("event", "connection")
    _coroutines = False

    def __init__(self, connect: Callable[[], Any], *, table: str = TABLE, paramstyle: str | None = None) -> None:
        if not callable(connect):
            raise TypeError("connect must be a function that opens a connection, such as lambda: sqlite3.connect(path)")
        self._connect = connect
        self._table = checked_table(table)
        self._paramstyle = None if paramstyle is None else checked_paramstyle(paramstyle)
        self._local = threading.local()
        # SQLite has one writer at a time; those that wait for it poll, and the last one waits longest.
        self._sqlite_turn = threading.Lock()

    async def open(self, queue: str, in_thread: RunInThread) -> None:
        await in_thread(self.create_table)

    async def handle(self, event: Event, queue: str, handler: Handler, in_thread: RunInThread) -> bool:
        return await in_thread(self._handle, event, queue, handler)

    def release_thread(self) -> None:
        if (opened := getattr(self._local, "connection", None)) is not None:
            self._local.connection = None
            with contextlib.suppress(Exception):
                opened[0].close()

    def create_table(self) -> None:
        """Create the table if it is missing. Raises DedupeUnavailableError, ValueError, and errors of the driver."""
        with self._own_connection() as (connection, driver), transient_errors():
            if self._exists(connection, driver):
                return
            try:
                driver.execute(
                    connection,
                    f"CREATE TABLE {self._table} (queue VARCHAR(255) NOT NULL, event_id VARCHAR(255) NOT NULL, "
                    "processed_at BIGINT NOT NULL, PRIMARY KEY (queue, event_id))",
                )
                connection.commit()
            except Exception:
                connection.rollback()
                if not self._exists(connection, driver):  # another process may have created it meanwhile
                    raise

    def prune(self, older_than: timedelta = KEEP) -> int:
        """Delete ids of events that were handled long ago; return how many.

        Args:
            older_than: longer than any copy can wait in a queue, also in a parking queue.

        Raises:
            DedupeUnavailableError: the database is unavailable.
        """
        before = int(time.time() - checked_age(older_than))
        with self._own_connection() as (connection, driver), transient_errors():
            driver.begin(connection)
            statement = f"DELETE FROM {self._table} WHERE processed_at < :before"  # noqa: S608 - the name is checked
            count = int(driver.execute(connection, statement, before=before).rowcount)
            driver.commit(connection)
            return count

    def _handle(self, event: Event, queue: str, handler: Handler) -> bool:
        connection, driver = self._thread_connection()
        with self._sqlite_turn if driver.is_sqlite else contextlib.nullcontext():
            try:
                if not self._insert(connection, driver, event.id, queue):
                    driver.rollback(connection)
                    return False
                call_blocking(handler, event, connection)
                self._check_unended(connection, driver, event.id, queue)
                # If the connection breaks here, the next attempt finds out whether the transaction was committed.
                with transient_errors():
                    driver.commit(connection)
            except BaseException as error:
                self._recover(connection, driver, isinstance(error, DedupeUnavailableError))
                raise
            return True

    def _insert(self, connection: Connection, driver: Driver, event_id: str, queue: str) -> bool:
        """Insert the id; return False if another transaction has committed it."""
        statement = (
            f"INSERT INTO {self._table} (queue, event_id, processed_at) "  # noqa: S608 - the name is checked
            "VALUES (:queue, :event_id, :processed_at)"
        )
        with errors_before_handler():
            driver.begin(connection)
            try:
                driver.execute(connection, statement, queue=queue, event_id=event_id, processed_at=int(time.time()))
            except Exception as error:
                # Not every driver raises IntegrityError for an id that is there already (pg8000 does not).
                if self._is_committed(connection, driver, event_id, queue):
                    return False
                if is_kind(error, "IntegrityError"):
                    raise DedupeUnavailableError("the event's id was inserted and removed again meanwhile") from error
                raise
            return True

    def _is_committed(self, connection: Connection, driver: Driver, event_id: str, queue: str) -> bool:
        driver.rollback(connection)
        return self._is_inserted(connection, driver, event_id, queue)

    def _check_unended(self, connection: Connection, driver: Driver, event_id: str, queue: str) -> None:
        """Raise RuntimeError, or the driver's error, if a commit would not commit the id.

        PostgreSQL answers COMMIT in a transaction in which a statement failed with a rollback, and without an error.
        """
        if not self._is_inserted(connection, driver, event_id, queue):
            raise RuntimeError(ENDED)

    def _is_inserted(self, connection: Connection, driver: Driver, event_id: str, queue: str) -> bool:
        where = "WHERE queue = :queue AND event_id = :event_id"
        query = f"SELECT 1 FROM {self._table} {where}"  # noqa: S608 - the name is checked
        return driver.execute(connection, query, queue=queue, event_id=event_id).fetchone() is not None

    def _exists(self, connection: Connection, driver: Driver) -> bool:
        query = f"SELECT queue, event_id, processed_at FROM {self._table} WHERE 1 = 0"  # noqa: S608
        try:
            driver.execute(connection, query).fetchall()
        except Exception as error:
            if is_kind(error, "Error"):
                return False
            raise
        finally:
            connection.rollback()
        return True

    def _thread_connection(self) -> tuple[Connection, Driver]:
        if getattr(self._local, "connection", None) is None:
            self._local.connection = self._connected()
        connection: tuple[Connection, Driver] = self._local.connection
        return connection

    def _connected(self) -> tuple[Connection, Driver]:
        with transient_errors():
            connection = self._connect()
        return connection, Driver(connection, self._paramstyle)

    def _recover(self, connection: Connection, driver: Driver, broken: bool) -> None:
        """Roll back. Replace the connection if it is broken."""
        try:
            driver.rollback(connection)
        except Exception:  # noqa: BLE001 - each driver has errors of its own
            broken = True
        if broken:
            self._local.connection = None
            with contextlib.suppress(Exception):
                connection.close()

    @contextmanager
    def _own_connection(self) -> Iterator[tuple[Connection, Driver]]:
        connection, driver = self._connected()
        try:
            yield connection, driver
        finally:
            with contextlib.suppress(Exception):
                connection.close()
