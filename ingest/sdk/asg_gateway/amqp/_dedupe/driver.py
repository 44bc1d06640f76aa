"""Differences between drivers of DB-API 2.0 (PEP 249): parameters, transactions and errors."""

import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol

from asg_gateway.amqp._dedupe.strategy import DedupeUnavailableError

PARAMSTYLES: Final = ("qmark", "numeric", "named", "format", "pyformat")
ENDED: Final = "the handler has ended the transaction of its event: it must neither commit nor roll back"
_TABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")


class Connection(Protocol):
    """What every DB-API 2.0 connection has."""

    def cursor(self) -> Any: ...
    def commit(self) -> Any: ...
    def rollback(self) -> Any: ...
    def close(self) -> Any: ...


class Driver:
    """What is particular about the driver of a connection.

    Args:
        connection: an open connection.
        paramstyle: how parameters are written, instead of the `paramstyle` of the driver's module.

    Raises:
        ValueError: the connection cannot be used, or the paramstyle is unknown.
    """

    def __init__(self, connection: Connection, paramstyle: str | None) -> None:
        self.is_sqlite = isinstance(connection, sqlite3.Connection)
        self.paramstyle = paramstyle or _paramstyle(connection)
        if not self.is_sqlite and _is_in_autocommit(connection):
            raise ValueError("connect() must return connections without autocommit: id and effects are one transaction")

    def begin(self, connection: Connection) -> None:
        """Begin a transaction; with most drivers, the first statement does."""
        # Explicit, because sqlite3 begins late or, with isolation_level=None, not at all. IMMEDIATE, because a
        # transaction that reads before it writes may fail as locked without waiting.
        if isinstance(connection, sqlite3.Connection) and not connection.in_transaction:
            connection.execute("BEGIN IMMEDIATE")

    def commit(self, connection: Connection) -> None:
        """Commit. Raises RuntimeError if the handler has ended the transaction (only noticed with sqlite3)."""
        if not isinstance(connection, sqlite3.Connection):
            connection.commit()
        elif connection.in_transaction:
            connection.execute("COMMIT")
        else:
            raise RuntimeError(f"{ENDED}, nor use `with connection`")

    def rollback(self, connection: Connection) -> None:
        """Roll back."""
        if isinstance(connection, sqlite3.Connection):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        else:
            connection.rollback()

    def execute(self, connection: Connection, statement: str, **values: object) -> Any:
        """Execute a statement with parameters written as `:name`; return the cursor."""
        cursor = connection.cursor()
        cursor.execute(*parameters(self.paramstyle, statement, values))
        return cursor


def parameters(paramstyle: str, statement: str, values: Mapping[str, object]) -> tuple[str, Any]:
    """Return a statement with parameters written as `:name`, and their values, in another style."""
    names: list[str] = []

    def placeholder(match: re.Match[str]) -> str:
        names.append(match[1])
        styles = {"qmark": "?", "numeric": f":{len(names)}", "named": match[0], "format": "%s"}
        return styles.get(paramstyle, f"%({match[1]})s")

    text = re.sub(r":([a-z_]+)", placeholder, statement)
    return text, dict(values) if paramstyle in ("named", "pyformat") else tuple(values[name] for name in names)


def checked_paramstyle(paramstyle: str) -> str:
    """Return a paramstyle. Raises ValueError."""
    if paramstyle not in PARAMSTYLES:
        raise ValueError(f"paramstyle must be one of {', '.join(PARAMSTYLES)}")
    return paramstyle


def checked_table(table: str) -> str:
    """Return the name of a table, which is put into statements as it is. Raises ValueError."""
    if not isinstance(table, str) or not _TABLE.fullmatch(table):
        raise ValueError("table must be a plain name, such as asg_processed_events or schema.asg_processed_events")
    return table


def checked_age(older_than: timedelta) -> float:
    """Return an age in seconds. Raises ValueError."""
    if older_than <= timedelta():
        raise ValueError("older_than must be positive: ids are needed as long as copies can arrive")
    return older_than.total_seconds()


@contextmanager
def transient_errors() -> Iterator[None]:
    """Raise errors that may pass by themselves as DedupeUnavailableError."""
    try:
        yield
    except Exception as error:
        if not is_kind(error, "OperationalError", "InterfaceError", "TimeoutError", "OSError"):
            raise
        raise DedupeUnavailableError(f"the database is unavailable: {error}") from error


@contextmanager
def errors_before_handler() -> Iterator[None]:
    """Raise all errors of a driver as DedupeUnavailableError: no attempt of the handler has failed.

    During a failover, PostgreSQL may be read-only, for which its drivers raise InternalError or ProgrammingError. An
    error about a value is raised as it is, because it would not pass.
    """
    try:
        with transient_errors():
            yield
    except Exception as error:
        if is_kind(error, "DataError") or not is_kind(error, "Error", "DBAPIError"):
            raise
        raise DedupeUnavailableError(f"the event's id cannot be inserted: {error}") from error


def is_kind(error: BaseException, *names: str) -> bool:
    """Return whether an error is of a class with one of these names: each driver has its own classes of PEP 249."""
    return any(cls.__name__ in names for cls in type(error).__mro__)


def _is_in_autocommit(connection: Connection) -> bool:
    # Of pymysql and mysqlclient, `autocommit` is a method that sets it.
    get_autocommit = getattr(connection, "get_autocommit", None)
    return (get_autocommit() if callable(get_autocommit) else getattr(connection, "autocommit", False)) is True


def _paramstyle(connection: Connection) -> str:
    """Return the paramstyle of the innermost package of the connection's class that has one. Raises ValueError."""
    for cls in type(connection).__mro__:
        name = cls.__module__
        while name:
            if isinstance(paramstyle := getattr(sys.modules.get(name), "paramstyle", None), str):
                return checked_paramstyle(paramstyle)
            name = name.rpartition(".")[0]
    raise ValueError(
        f"connect() returned a {type(connection).__name__}, whose module has no paramstyle: if it is a DB-API 2.0 "
        f"connection, pass paramstyle=, one of {', '.join(PARAMSTYLES)}"
    )
