"""Every dedupe strategy of the SDK, for one suite of tests."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from asg_gateway.amqp import Dedupe, Event, MemoryDedupe, SqlAlchemyDedupe, SqlDedupe
from sqlalchemy.ext.asyncio import create_async_engine


@dataclass(frozen=True)
class Strategy:
    """One strategy on one file.

    Attributes:
        new: makes another strategy on the same database, as another process would.
        handler: makes a handler that notes each event, and then calls a function with it.
        noted: returns the ids of the noted events, copies included.
        transactional: whether the notes of a handler that raises are undone.
    """

    new: Callable[[], Dedupe]
    handler: Callable[[Callable[[Event], object]], Callable[..., Any]]
    noted: Callable[[], list[str]]
    transactional: bool = True


_INSERT: Final = "INSERT INTO notes (event_id) VALUES (?)"


def memory(path: Path) -> Strategy:
    notes: list[str] = []
    dedupe = MemoryDedupe()

    def handler(then: Callable[[Event], object]) -> Callable[..., Any]:
        def note(event: Event) -> None:
            notes.append(event.id)
            then(event)

        return note

    return Strategy(lambda: dedupe, handler, lambda: notes, transactional=False)


def memory_with_coroutine(path: Path) -> Strategy:
    notes: list[str] = []
    dedupe = MemoryDedupe()

    def handler(then: Callable[[Event], object]) -> Callable[..., Any]:
        async def note(event: Event) -> None:
            notes.append(event.id)
            then(event)

        return note

    return Strategy(lambda: dedupe, handler, lambda: notes, transactional=False)


def sqlite(**options: Any) -> Callable[[Path], Strategy]:
    """Return a strategy on connections of sqlite3 with these options."""

    def strategy(path: Path) -> Strategy:
        _create(path)
        return Strategy(lambda: SqlDedupe(lambda: sqlite3.connect(path, **options)), _sqlite_handler, _reader(path))

    return strategy


def engine(path: Path) -> Strategy:
    _create(path)

    def handler(then: Callable[[Event], object]) -> Callable[..., Any]:
        def note(event: Event, connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql(_INSERT, (event.id,))
            then(event)

        return note

    url = f"sqlite:///{path}"
    return Strategy(lambda: SqlAlchemyDedupe(sqlalchemy.create_engine(url)), handler, _reader(path))


def async_engine(path: Path) -> Strategy:
    _create(path)

    def handler(then: Callable[[Event], object]) -> Callable[..., Any]:
        async def note(event: Event, connection: Any) -> None:
            await connection.exec_driver_sql(_INSERT, (event.id,))
            then(event)

        return note

    url = f"sqlite+aiosqlite:///{path}"
    return Strategy(
        lambda: SqlAlchemyDedupe(create_async_engine(url, poolclass=sqlalchemy.NullPool)), handler, _reader(path)
    )


STRATEGIES: Final = {
    "memory": memory,
    "memory-coroutine": memory_with_coroutine,
    "sqlite3": sqlite(),
    "sqlite3-isolation-none": sqlite(isolation_level=None),
    "sqlite3-isolation-exclusive": sqlite(isolation_level="EXCLUSIVE"),
    "sqlalchemy": engine,
    "sqlalchemy-async": async_engine,
}


def _sqlite_handler(then: Callable[[Event], object]) -> Callable[..., Any]:
    def note(event: Event, connection: sqlite3.Connection) -> None:
        connection.execute(_INSERT, (event.id,))
        then(event)

    return note


def _create(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE notes (event_id TEXT)")
    connection.close()


def _reader(path: Path) -> Callable[[], list[str]]:
    def noted() -> list[str]:
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT event_id FROM notes ORDER BY rowid").fetchall()
        connection.close()
        return [event_id for (event_id,) in rows]

    return noted
