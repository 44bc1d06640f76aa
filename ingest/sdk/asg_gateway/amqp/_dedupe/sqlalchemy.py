"""Deduplication in the handler's own transaction, on an engine of SQLAlchemy, which is imported when it is used."""

import contextlib
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from asg_gateway.amqp._dedupe.driver import (
    ENDED,
    checked_age,
    checked_table,
    errors_before_handler,
    is_kind,
    transient_errors,
)
from asg_gateway.amqp._dedupe.sql import KEEP, TABLE
from asg_gateway.amqp._dedupe.strategy import Dedupe, DedupeUnavailableError, Handler, RunInThread, call_blocking
from asg_gateway.amqp._events import Event

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Transaction
    from sqlalchemy.ext.asyncio import AsyncEngine


class SqlAlchemyDedupe(Dedupe):
    """Inserts the event's id in the transaction in which the handler does its work.

    The handler is called as `handler(event, connection)`. With an `Engine` it is a function that gets a `Connection`,
    in a thread; with an `AsyncEngine` it is a coroutine function that gets an `AsyncConnection`. It must neither commit
    nor roll back. The ids are kept per queue, as with `SqlDedupe`.

    Args:
        engine: its pool should have a connection for each handler that runs at once.
        table: the name of the table, perhaps with its schema. It is created if it is missing.

    Raises:
        TypeError: the engine is not one of SQLAlchemy.
        ValueError: the name of the table is invalid.
    """

    _takes = ("event", "connection")

    def __init__(self, engine: "Engine | AsyncEngine", *, table: str = TABLE) -> None:
        import sqlalchemy
        from sqlalchemy.ext.asyncio import AsyncEngine

        if not isinstance(engine, sqlalchemy.Engine | AsyncEngine):
            raise TypeError("engine must be an Engine or AsyncEngine of SQLAlchemy")
        schema, _, name = checked_table(table).rpartition(".")
        self._async = engine if isinstance(engine, AsyncEngine) else None
        self._engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        self._coroutines = self._async is not None
        self._table = sqlalchemy.Table(
            name,
            sqlalchemy.MetaData(),
            sqlalchemy.Column("queue", sqlalchemy.String(255), primary_key=True),
            sqlalchemy.Column("event_id", sqlalchemy.String(255), primary_key=True),
            sqlalchemy.Column("processed_at", sqlalchemy.BigInteger, nullable=False),
            schema=schema or None,
        )
        # SQLite has one writer at a time; those that wait for it poll, and the last one waits longest.
        self._turn = threading.Lock() if self._engine.dialect.name == "sqlite" else contextlib.nullcontext()

    async def open(self, queue: str, in_thread: RunInThread) -> None:
        if self._async is None:
            await in_thread(self.create_table)
            return
        with transient_errors():
            async with self._async.connect() as connection:
                await connection.run_sync(self._create)

    async def handle(self, event: Event, queue: str, handler: Handler, in_thread: RunInThread) -> bool:
        if self._async is None:
            return await in_thread(self._handle, event, queue, handler)
        async with contextlib.AsyncExitStack() as stack:
            with errors_before_handler():
                connection = await stack.enter_async_context(self._async.connect())
                transaction = await connection.run_sync(self._insert, event.id, queue)
            if transaction is None:
                return False
            await handler(event, connection)
            await connection.run_sync(self._check_unended, transaction, event.id, queue)
            # If the connection breaks here, the next attempt finds out whether the transaction was committed.
            with transient_errors():
                await connection.commit()
        return True

    def create_table(self) -> None:
        """Create the table if it is missing, with an `Engine`; a consumer with an `AsyncEngine` does it at its start.

        Raises DedupeUnavailableError, ValueError with an engine in autocommit, and errors of SQLAlchemy.
        """
        with transient_errors(), self._blocking().connect() as connection:
            self._create(connection)

    def prune(self, older_than: timedelta = KEEP) -> int:
        """Delete ids of events that were handled long ago; return how many. With an `AsyncEngine`, use `aprune`.

        Args:
            older_than: longer than any copy can wait in a queue, also in a parking queue.

        Raises:
            DedupeUnavailableError: the database is unavailable.
        """
        seconds = checked_age(older_than)
        with transient_errors(), self._blocking().connect() as connection:
            return self._prune(connection, seconds)

    async def aprune(self, older_than: timedelta = KEEP) -> int:
        """Do as `prune`, with an `AsyncEngine`."""
        seconds = checked_age(older_than)
        if self._async is None:
            raise TypeError("with an Engine, call prune()")
        with transient_errors():
            async with self._async.connect() as connection:
                return await connection.run_sync(self._prune, seconds)

    def _blocking(self) -> "Engine":
        if self._async is not None:
            raise TypeError("with an AsyncEngine, await aprune(); a consumer creates the table at its start")
        return self._engine

    def _handle(self, event: Event, queue: str, handler: Handler) -> bool:
        with self._turn, contextlib.ExitStack() as stack:
            with errors_before_handler():
                connection = stack.enter_context(self._engine.connect())
                transaction = self._insert(connection, event.id, queue)
            if transaction is None:
                return False
            call_blocking(handler, event, connection)
            self._check_unended(connection, transaction, event.id, queue)
            with transient_errors():
                connection.commit()
        return True

    def _insert(self, connection: "Connection", event_id: str, queue: str) -> "Transaction | None":
        """Insert the id; return the transaction, or None if another one has committed the id."""
        import sqlalchemy

        transaction = connection.begin()
        row = {"queue": queue, "event_id": event_id, "processed_at": int(time.time())}
        try:
            connection.execute(self._table.insert(), row)
        except sqlalchemy.exc.DBAPIError as error:
            # Not every driver has IntegrityError for an id that is there already.
            transaction.rollback()
            if self._is_inserted(connection, event_id, queue):
                return None
            if is_kind(error, "IntegrityError"):
                raise DedupeUnavailableError("the event's id was inserted and removed again meanwhile") from error
            raise
        return transaction

    def _check_unended(self, connection: "Connection", transaction: "Transaction", event_id: str, queue: str) -> None:
        """Raise RuntimeError, or an error of SQLAlchemy, if a commit would not commit the id."""
        # A transaction that the handler has ended with a statement, or that PostgreSQL has aborted, is active here.
        if not transaction.is_active or not self._is_inserted(connection, event_id, queue):
            raise RuntimeError(ENDED)

    def _is_inserted(self, connection: "Connection", event_id: str, queue: str) -> bool:
        columns = self._table.c
        query = self._table.select().where(columns.queue == queue, columns.event_id == event_id)
        return connection.execute(query).first() is not None

    def _create(self, connection: "Connection") -> None:
        import sqlalchemy

        if _is_in_autocommit(connection):
            raise ValueError("engine must not be in autocommit: id and effects are one transaction")
        try:
            self._table.create(connection, checkfirst=True)
            connection.commit()
        except sqlalchemy.exc.DBAPIError:
            connection.rollback()
            if not sqlalchemy.inspect(connection).has_table(self._table.name, self._table.schema):
                raise

    def _prune(self, connection: "Connection", seconds: float) -> int:
        before = int(time.time() - seconds)
        count = int(connection.execute(self._table.delete().where(self._table.c.processed_at < before)).rowcount)
        connection.commit()
        return count


def _is_in_autocommit(connection: "Connection") -> bool:
    # The connection's own get_isolation_level() asks some databases, which do not know of it.
    dialect = connection.dialect
    level = connection.get_execution_options().get("isolation_level")
    if (level or getattr(dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT":
        return True
    # The driver's own setting, from SQLAlchemy 2.0.43 on. With SQLite, it may be set by a program that begins itself.
    detect = getattr(dialect, "detect_autocommit_setting", None)
    if detect is None or dialect.name == "sqlite":
        return False
    try:
        return bool(detect(connection.connection.dbapi_connection))
    except NotImplementedError:
        return False
