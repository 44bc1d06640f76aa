"""What is particular about SqlDedupe: drivers, broken connections, locks, the table."""

import sqlite3
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from asg_gateway.amqp import DedupeUnavailableError, Event, SqlAlchemyDedupe, SqlDedupe
from asg_gateway.amqp._dedupe.driver import PARAMSTYLES, parameters
from asg_gateway.amqp.testing import FakeConsumer, deliver, task_accepted
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers.process import wait_until
from tests.unit.sdk.amqp.drivers import EVENT, Driver, DriverConnection, DriverCursor, ignore


def rows(path: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(path)
    found = connection.execute(query).fetchall()
    connection.close()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.mark.parametrize("paramstyle", PARAMSTYLES)
def test_every_paramstyle_of_a_driver_works(path: Path, paramstyle: str) -> None:
    driver = Driver(path, paramstyle)
    dedupe = SqlDedupe(driver.connect, paramstyle=paramstyle)
    outcome = deliver(ignore, EVENT, EVENT, dedupe=dedupe)
    assert (outcome.handled, outcome.duplicates) == (1, 1)
    assert deliver(ignore, EVENT, dedupe=dedupe).duplicates == 1
    assert dedupe.prune(timedelta(days=1)) == 0
    assert rows(path, "SELECT queue, event_id FROM asg_processed_events") == [("consensus.tasks", EVENT.id)]
    wait_until(lambda: driver.closed == driver.opened, "the connections of threads that have ended to be closed", 5)


def test_parameters_are_in_the_order_of_the_statement() -> None:
    values = {"b": 2, "a": 1}
    assert parameters("qmark", "x :a :b :a", values) == ("x ? ? ?", (1, 2, 1))
    assert parameters("numeric", "x :a :b", values) == ("x :1 :2", (1, 2))
    assert parameters("pyformat", "x :a :b", values) == ("x %(a)s %(b)s", {"a": 1, "b": 2})


def test_driver_without_paramstyle_is_an_error_that_says_what_to_pass(path: Path) -> None:
    with pytest.raises(ValueError, match="pass paramstyle=, one of qmark"):
        deliver(ignore, EVENT, dedupe=SqlDedupe(Driver(path, "qmark").connect))


@pytest.mark.parametrize("statement", ["INSERT", "COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("error", [sqlite3.OperationalError("server gone"), sqlite3.InterfaceError("closed")])
def test_broken_connection_is_replaced_and_the_event_handled_once(path: Path, statement: str, error: Exception) -> None:
    """An outage is no failure of the handler: with one attempt, the event would be parked."""
    driver = Driver(path, "qmark")
    dedupe = SqlDedupe(driver.connect, paramstyle="qmark")
    dedupe.create_table()
    calls = []

    def handle(event: Event, connection: Any) -> None:
        calls.append(event.id)
        if len(calls) == 1 and statement != "INSERT":
            driver.fail_next = (statement, error)
            if statement == "ROLLBACK":
                raise ValueError("not now")

    if statement == "INSERT":
        driver.fail_next = (statement, error)
    outcome = deliver(handle, EVENT, dedupe=dedupe, max_attempts=2 if statement == "ROLLBACK" else 1)
    assert (outcome.handled, outcome.retried, outcome.parked) == (1, 1, [])
    assert len(rows(path, "SELECT * FROM asg_processed_events")) == 1


READ_ONLY = sqlite3.InternalError("cannot execute INSERT in a read-only transaction")


def refusing_dedupe(path: Path, error: Exception) -> SqlDedupe:
    """Return a strategy whose first INSERT the database refuses."""
    errors = [error]

    class Refusing(DriverConnection):
        def check(self, statement: str) -> None:
            if statement.startswith("INSERT") and errors:
                raise errors.pop()

    driver = Driver(path, "qmark")
    return SqlDedupe(lambda: Refusing(driver), paramstyle="qmark")


def test_read_only_database_is_an_outage_and_no_failure_of_the_handler(path: Path) -> None:
    """A PostgreSQL server is read-only during a failover. With one attempt, the event would be parked."""
    outcome = deliver(ignore, EVENT, dedupe=refusing_dedupe(path, READ_ONLY), max_attempts=1)
    assert (outcome.handled, outcome.retried, outcome.parked) == (1, 1, [])


def test_id_that_the_database_cannot_store_is_parked(path: Path) -> None:
    """It would be refused for ever."""
    dedupe = refusing_dedupe(path, sqlite3.DataError("value too long"))
    outcome = deliver(ignore, EVENT, dedupe=dedupe, max_attempts=1)
    assert str(outcome.parked[0].error) == "value too long"


def fail_first_insert(engine: sqlalchemy.Engine) -> None:
    failures = [READ_ONLY]

    def fail(cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("INSERT") and failures:
            raise failures.pop()

    sqlalchemy.event.listen(engine, "do_execute", fail)


def test_read_only_database_of_sqlalchemy_is_an_outage(path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    fail_first_insert(engine)
    outcome = deliver(ignore, EVENT, dedupe=SqlAlchemyDedupe(engine), max_attempts=1)
    assert (outcome.handled, outcome.retried, outcome.parked) == (1, 1, [])


async def test_read_only_database_of_an_async_engine_is_an_outage(path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=sqlalchemy.NullPool)
    fail_first_insert(engine.sync_engine)

    async def handle(event: Event, connection: object) -> None:
        return

    outcome = await FakeConsumer(handle, dedupe=SqlAlchemyDedupe(engine), max_attempts=1).deliver(EVENT)
    assert (outcome.handled, outcome.retried, outcome.parked) == (1, 1, [])


def test_commit_that_succeeded_although_it_raised_is_found_out(path: Path) -> None:
    """The connection breaks after the server has committed. The event must not be handled again."""
    calls: list[str] = []

    class Lost(DriverConnection):
        def commit(self) -> None:
            super().commit()
            if len(calls) == 1:
                calls.append("lost")
                raise sqlite3.OperationalError("server gone")

    driver = Driver(path, "qmark")
    dedupe = SqlDedupe(lambda: Lost(driver), paramstyle="qmark")
    outcome = deliver(lambda event, connection: calls.append(event.id), EVENT, dedupe=dedupe, max_attempts=1)
    assert (calls, outcome.handled, outcome.duplicates) == ([EVENT.id, "lost"], 0, 1)


def test_driver_with_another_error_for_a_duplicate_is_understood(path: Path) -> None:
    """pg8000 raises ProgrammingError."""

    class Cursor(DriverCursor):
        def execute(self, statement: str, values: Any = ()) -> None:
            try:
                super().execute(statement, values)
            except sqlite3.IntegrityError as error:
                raise sqlite3.ProgrammingError(str(error)) from None

    class Connection(DriverConnection):
        def cursor(self) -> DriverCursor:
            return Cursor(self, self._inner.cursor(), "qmark")

    driver = Driver(path, "qmark")
    dedupe = SqlDedupe(lambda: Connection(driver), paramstyle="qmark")
    assert deliver(ignore, EVENT, dedupe=dedupe).handled == 1
    outcome = deliver(ignore, EVENT, dedupe=dedupe, max_attempts=1)
    assert (outcome.duplicates, outcome.parked) == (1, [])


def test_integrity_error_of_the_handler_is_not_taken_for_a_duplicate(path: Path) -> None:
    def handle(event: Event, connection: sqlite3.Connection) -> None:
        raise sqlite3.IntegrityError("UNIQUE constraint failed: orders.id")

    outcome = deliver(handle, EVENT, dedupe=SqlDedupe(lambda: sqlite3.connect(path)), max_attempts=2)
    assert (outcome.handled, outcome.duplicates, len(outcome.parked)) == (0, 0, 1)


async def test_locked_database_is_waited_for_and_counts_as_no_attempt(path: Path) -> None:
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    dedupe = SqlDedupe(lambda: sqlite3.connect(path, timeout=0.05))
    dedupe.create_table()
    holder.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, lambda: holder.execute("COMMIT")).start()
    outcome = await FakeConsumer(ignore, dedupe=dedupe, max_attempts=1).deliver(EVENT)
    assert (outcome.handled, outcome.parked) == (1, [])
    assert outcome.retried > 0
    holder.close()


@pytest.mark.parametrize("table", ["", "a b", "a;b", "a.b.c", "1a", "a" * 64, "ä", 'a"'])
def test_invalid_name_of_a_table_is_a_value_error(table: str) -> None:
    with pytest.raises(ValueError, match="table must be a plain name"):
        SqlDedupe(lambda: None, table=table)
    with pytest.raises(ValueError, match="table must be a plain name"):
        SqlAlchemyDedupe(sqlalchemy.create_engine("sqlite://"), table=table)


def test_wrong_arguments_are_errors_that_say_what_is_expected() -> None:
    with pytest.raises(ValueError, match="paramstyle must be one of"):
        SqlDedupe(lambda: None, paramstyle="percent")
    with pytest.raises(TypeError, match="connect must be a function"):
        SqlDedupe("app.db")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an Engine or AsyncEngine"):
        SqlAlchemyDedupe("sqlite://")  # type: ignore[arg-type]


def sqlite_dedupe(path: Path) -> SqlDedupe:
    return SqlDedupe(lambda: sqlite3.connect(path), table="seen")


def engine_dedupe(path: Path) -> SqlAlchemyDedupe:
    return SqlAlchemyDedupe(sqlalchemy.create_engine(f"sqlite:///{path}"), table="seen")


@pytest.mark.parametrize("new", [sqlite_dedupe, engine_dedupe])
def test_prune_deletes_ids_that_are_older_and_no_others(
    path: Path, new: Callable[[Path], SqlDedupe | SqlAlchemyDedupe]
) -> None:
    dedupe = new(path)
    deliver(ignore, EVENT, task_accepted(id="old"), dedupe=dedupe)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE seen SET processed_at = processed_at - 31 * 86400 WHERE event_id = 'old'")
    connection.close()
    assert dedupe.prune(timedelta(days=32)) == 0
    assert dedupe.prune() == 1
    assert rows(path, "SELECT event_id FROM seen") == [(EVENT.id,)]
    with pytest.raises(ValueError, match="older_than must be positive"):
        dedupe.prune(timedelta())


async def test_prune_with_an_async_engine_is_a_coroutine(path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=sqlalchemy.NullPool)
    dedupe = SqlAlchemyDedupe(engine)

    async def handle(event: Event, connection: object) -> None:
        return

    await FakeConsumer(handle, dedupe=dedupe).deliver(EVENT)
    assert await dedupe.aprune(timedelta(days=1)) == 0
    with pytest.raises(TypeError, match="await aprune"):
        dedupe.prune()


def test_database_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DedupeUnavailableError, match="unable to open database file"):
        SqlDedupe(lambda: sqlite3.connect(tmp_path / "missing/app.db")).create_table()


def test_table_that_exists_needs_no_right_to_create_one(path: Path) -> None:
    SqlDedupe(lambda: sqlite3.connect(path)).create_table()
    path.chmod(0o400)
    SqlDedupe(lambda: sqlite3.connect(f"file:{path}?mode=ro", uri=True)).create_table()
