"""The transaction of a handler: what ends it, aborts it, or does not begin it."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from asg_gateway.amqp import Event, SqlAlchemyDedupe, SqlDedupe
from asg_gateway.amqp.testing import FakeConsumer, deliver
from sqlalchemy.ext.asyncio import create_async_engine

from tests.unit.sdk.amqp.drivers import EVENT, Driver, DriverConnection, ignore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


class Autocommit(DriverConnection):
    """As psycopg has it."""

    autocommit = True


class AutocommitMethods(DriverConnection):
    """As pymysql has it."""

    def autocommit(self, value: bool) -> None:
        raise NotImplementedError

    def get_autocommit(self) -> bool:
        return True


@pytest.mark.parametrize("connection", [Autocommit, AutocommitMethods])
def test_connection_in_autocommit_is_an_error_that_says_why(path: Path, connection: type[DriverConnection]) -> None:
    driver = Driver(path, "qmark")
    with pytest.raises(ValueError, match="must return connections without autocommit"):
        deliver(ignore, EVENT, dedupe=SqlDedupe(lambda: connection(driver), paramstyle="qmark"))


def autocommit_engine(url: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")


def autocommit_option(url: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url).execution_options(isolation_level="AUTOCOMMIT")


@pytest.mark.parametrize("new", [autocommit_engine, autocommit_option])
def test_engine_in_autocommit_is_an_error_that_says_why(path: Path, new: Callable[[str], sqlalchemy.Engine]) -> None:
    """Its id would be committed although the handler fails, and the next attempt taken for a duplicate."""
    with pytest.raises(ValueError, match="engine must not be in autocommit"):
        deliver(ignore, EVENT, dedupe=SqlAlchemyDedupe(new(f"sqlite:///{path}")))


async def test_async_engine_in_autocommit_is_an_error_that_says_why(path: Path) -> None:
    async def handle(event: Event, connection: object) -> None:
        return

    url = f"sqlite+aiosqlite:///{path}"
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with pytest.raises(ValueError, match="engine must not be in autocommit"):
        await FakeConsumer(handle, dedupe=SqlAlchemyDedupe(engine)).deliver(EVENT)


@pytest.mark.parametrize("end", ["commit", "rollback", "__enter__"])
def test_handler_that_ends_the_transaction_gets_an_error(path: Path, end: str) -> None:
    def handle(event: Event, connection: sqlite3.Connection) -> None:
        if end == "__enter__":
            with connection:
                connection.execute("SELECT 1")
        else:
            getattr(connection, end)()

    outcome = deliver(handle, EVENT, dedupe=SqlDedupe(lambda: sqlite3.connect(path)), max_attempts=1)
    (parked,) = outcome.parked
    assert "must neither commit nor roll back" in str(parked.error)


def test_sqlalchemy_handler_that_ends_the_transaction_gets_an_error(path: Path) -> None:
    dedupe = SqlAlchemyDedupe(sqlalchemy.create_engine(f"sqlite:///{path}"))
    outcome = deliver(lambda event, connection: connection.rollback(), EVENT, dedupe=dedupe, max_attempts=1)
    assert "must neither commit nor roll back" in str(outcome.parked[0].error)


def test_handler_of_another_driver_that_rolls_back_gets_an_error(path: Path) -> None:
    """Otherwise the event would be acknowledged although nothing of it is in the database."""
    driver = Driver(path, "qmark")
    dedupe = SqlDedupe(driver.connect, paramstyle="qmark")
    outcome = deliver(lambda event, connection: connection.rollback(), EVENT, dedupe=dedupe, max_attempts=1)
    assert "must neither commit nor roll back" in str(outcome.parked[0].error)


def test_transaction_that_the_database_has_aborted_is_a_failure_of_the_handler(path: Path) -> None:
    """PostgreSQL refuses all statements after a failed one, and turns COMMIT into a rollback without an error."""

    class Aborting(DriverConnection):
        aborted = False

        def check(self, statement: str) -> None:
            if self.aborted and statement not in ("COMMIT", "ROLLBACK"):
                raise sqlite3.InternalError("current transaction is aborted")

        def commit(self) -> None:
            if self.aborted:
                self.rollback()
            super().commit()

        def rollback(self) -> None:
            super().rollback()
            self.aborted = False

    def handle(event: Event, connection: Any) -> None:
        try:
            connection.cursor().execute("INSERT INTO missing VALUES (1)")
        except sqlite3.OperationalError:
            connection.aborted = True

    dedupe = SqlDedupe(lambda: Aborting(Driver(path, "qmark")), paramstyle="qmark")
    outcome = deliver(handle, EVENT, dedupe=dedupe, max_attempts=2)
    assert (outcome.handled, str(outcome.parked[0].error)) == (0, "current transaction is aborted")


def test_sqlalchemy_handler_that_rolls_back_with_a_statement_gets_an_error(path: Path) -> None:
    dedupe = SqlAlchemyDedupe(sqlalchemy.create_engine(f"sqlite:///{path}"))
    outcome = deliver(
        lambda event, connection: connection.exec_driver_sql("ROLLBACK"), EVENT, dedupe=dedupe, max_attempts=1
    )
    assert "must neither commit nor roll back" in str(outcome.parked[0].error)


async def test_async_handler_that_rolls_back_with_a_statement_gets_an_error(path: Path) -> None:
    dedupe = SqlAlchemyDedupe(create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=sqlalchemy.NullPool))

    async def handle(event: Event, connection: Any) -> None:
        await connection.exec_driver_sql("ROLLBACK")

    outcome = await FakeConsumer(handle, dedupe=dedupe, max_attempts=1).deliver(EVENT)
    assert "must neither commit nor roll back" in str(outcome.parked[0].error)
