"""A driver of a database, and an event with its handler, for the tests of SqlDedupe."""

import sqlite3
import types
from pathlib import Path
from typing import Any

from asg_gateway.amqp import Event
from asg_gateway.amqp.testing import task_accepted

EVENT = task_accepted()


def ignore(event: Event, connection: object) -> None:
    """Handle an event."""


class Driver:
    """A driver like many others around sqlite3: its connection begins transactions itself and has no `execute`.

    `fail_next` makes the next statement that begins with a text raise an error, and breaks the connection.
    """

    def __init__(self, path: Path, paramstyle: str) -> None:
        self.path = path
        self.paramstyle = paramstyle
        self.module = types.ModuleType("driver")
        self.fail_next: tuple[str, Exception] | None = None
        self.opened = 0
        self.closed = 0

    def connect(self) -> "DriverConnection":
        self.opened += 1
        return DriverConnection(self)


class DriverConnection:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._inner = sqlite3.connect(driver.path)
        self._broken = False

    def check(self, statement: str) -> None:
        if self._driver.fail_next and statement.startswith(self._driver.fail_next[0]):
            error, self._driver.fail_next, self._broken = self._driver.fail_next[1], None, True
            raise error
        if self._broken:
            raise sqlite3.InterfaceError("the connection is broken")

    def cursor(self) -> "DriverCursor":
        return DriverCursor(self, self._inner.cursor(), self._driver.paramstyle)

    def commit(self) -> None:
        self.check("COMMIT")
        self._inner.commit()

    def rollback(self) -> None:
        self.check("ROLLBACK")
        self._inner.rollback()

    def close(self) -> None:
        self._driver.closed += 1
        self._inner.close()


class DriverCursor:
    def __init__(self, connection: DriverConnection, inner: sqlite3.Cursor, paramstyle: str) -> None:
        self._connection, self._inner, self._paramstyle = connection, inner, paramstyle

    def execute(self, statement: str, values: Any = ()) -> None:
        self._connection.check(statement)
        if self._paramstyle == "pyformat":
            for name in values:
                statement = statement.replace(f"%({name})s", f":{name}")
        elif self._paramstyle == "format":
            statement = statement.replace("%s", "?")
        self._inner.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
