"""A channel that reconnects: its connection is made, used until it is lost, and made again after a backoff."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from ingest.broker.rabbitmq.amqp.connection import Connection
from ingest.domain.errors import BrokerUnavailable, cause_of
from ingest.domain.ports import ConnectionState
from ingest.waiting import Backoff, raise_if_cancelled

_PAUSES: Final = (0.1, 5.0)
"""First and longest pause before the next connection, in seconds."""
_STEADY: Final = 10.0
"""Seconds that a connection must last to reset the backoff.

If it breaks sooner, the pauses grow: each break returns the
deliveries of the connection, and returns count towards the delivery limit."""

_log = structlog.get_logger(__name__)


class ReconnectingChannel:
    """Base of publisher and consumer. `_open` sets up a new connection, `_lost` cleans up after a lost one.

    Args:
        new_connection: makes a connection that is not connected yet.
        purpose: what the connection is for, in logs and metrics.
    """

    def __init__(self, new_connection: Callable[[], Connection], purpose: str) -> None:
        self._new_connection = new_connection
        self._purpose = purpose
        self._last_problem = "not connected yet"
        self._connection: Connection | None = None
        self._tries = 0
        self._blocked_seconds = 0.0
        self._first_try = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect; return after the first try. If it fails, tries go on in the background."""
        self._task = asyncio.create_task(self._supervise(), name=self._purpose)
        await self._first_try.wait()

    def state(self) -> ConnectionState:
        """Return the state of the connection now."""
        connection = self._connection
        blocked = self._blocked_seconds + (connection.blocked_seconds if connection is not None else 0.0)
        connected = connection is not None and not connection.closed
        return ConnectionState(self._purpose, connected, max(0, self._tries - 1), blocked)

    @property
    def is_closed(self) -> bool:
        """Whether `close` has ended."""
        return self._task is not None and self._task.done()

    async def close(self) -> None:
        """Close the connection. A second call has no effect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _open(self, connection: Connection) -> asyncio.Future[None]:
        """Set up channels; return a future that is done once they are unusable. Raises BrokerUnavailable."""
        raise NotImplementedError

    def _lost(self) -> None:
        """Clean up after a connection that was lost or not set up."""
        raise NotImplementedError

    async def _supervise(self) -> None:
        backoff = Backoff(*_PAUSES)
        while True:
            connection = self._new_connection()
            self._tries += 1
            pause = backoff.next()
            try:
                await connection.connect()
                end = await self._open(connection)
                raise_if_cancelled()
                self._connection = connection
                self._first_try.set()
                opened = time.monotonic()
                await asyncio.wait([end])
                if time.monotonic() - opened >= _STEADY:
                    backoff.reset()
                    pause = backoff.next()
                self._last_problem = _loss(connection, end)
                _log.warning("broker_connection_lost", purpose=self._purpose, error=self._last_problem)
            except BrokerUnavailable as error:
                self._last_problem = str(error)
                _log.warning("broker_unavailable", error=str(error))
            except asyncio.CancelledError:
                # aiormq cancels every caller that waits on a connection that breaks; only our own cancellation counts.
                raise_if_cancelled()
                self._last_problem = f"the connection to {connection} was lost while it was set up"
                _log.warning("broker_connection_lost_during_setup", purpose=self._purpose, error=self._last_problem)
            except Exception as error:  # noqa: BLE001 - without this task there would be no further connection
                self._last_problem = f"{type(error).__name__}: {error}"
                _log.exception("broker_connection_failed", purpose=self._purpose, broker=str(connection))
            finally:
                self._connection = None
                self._blocked_seconds += connection.blocked_seconds
                self._lost()
                self._first_try.set()
                await connection.close()
            raise_if_cancelled()
            await asyncio.sleep(pause)


def _loss(connection: Connection, end: asyncio.Future[None]) -> str:
    """Return why a connection can no longer be used, as a clause."""
    error = None if end.cancelled() else end.exception()
    return f"the connection to {connection} was lost{'' if error is None else f': {cause_of(error)}'}"
