"""A supervised connection: made, used until it is lost, made again with backoff, until it is closed."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

import structlog

from ingest.broker.rabbitmq.amqp.connection import Connection
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.ports import ConnectionState

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_STEADY: Final = 10.0
"""Seconds a connection must last to count as good. One that breaks sooner is made again ever more slowly: each break
returns what was delivered on it, and returns are counted."""

_log = structlog.get_logger(__name__)


class ReconnectingChannel:
    """Base of publisher and consumer: `_open` sets a fresh wire up, `_lost` cleans up after one.

    Args:
        connect: makes a wire, not yet connected.
        what: what it is for, in logs.
    """

    def __init__(self, connect: Callable[[], Connection], what: str) -> None:
        self._new_wire = connect
        self._what = what
        self._why = "not connected yet"
        self._closed = False
        self._wire: Connection | None = None
        self._tries = 0
        self._blocked_seconds = 0.0
        self._first_try = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect; go on trying in the background where that fails. Returns after the first try."""
        self._task = asyncio.create_task(self._supervise(), name=self._what)
        await self._first_try.wait()

    def state(self) -> ConnectionState:
        """How the connection is at this moment."""
        wire = self._wire
        blocked = self._blocked_seconds + (wire.blocked_seconds if wire is not None else 0.0)
        connected = wire is not None and not wire.closed
        return ConnectionState(self._what, connected, max(0, self._tries - 1), blocked)

    async def close(self) -> None:
        """Close the connection; twice is fine."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _open(self, wire: Connection) -> asyncio.Future[None]:
        """Set up channels. Returns what is done once they are of no more use. Raises BrokerUnavailable."""
        raise NotImplementedError

    def _lost(self) -> None:
        """The wire is gone."""
        raise NotImplementedError

    async def _supervise(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            wire = self._new_wire()
            self._tries += 1
            try:
                await wire.connect()
                end = await self._open(wire)
                self._wire = wire
                self._first_try.set()
                opened = time.monotonic()
                await asyncio.wait([end])
                if time.monotonic() - opened >= _STEADY:
                    pause = _FIRST_PAUSE
                self._why = "connection lost" if end.cancelled() else f"connection lost: {end.exception()}"
                _log.warning("broker connection lost, connecting again", purpose=self._what, broker=str(wire))
            except BrokerUnavailable as error:
                self._why = str(error)
                _log.warning("broker unavailable, trying again", purpose=self._what, error=str(error), seconds=pause)
            except asyncio.CancelledError:
                # aiormq cancels whoever waits for an answer on a connection that breaks; that is not meant for us.
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                self._why = "connection lost while it was set up"
                _log.warning("broker connection lost while it was set up", purpose=self._what, broker=str(wire))
            except Exception as error:  # noqa: BLE001 - nobody else would ever connect again
                self._why = f"{type(error).__name__}: {error}"
                _log.exception("broker connection failed", purpose=self._what, broker=str(wire))
            finally:
                self._wire = None
                self._blocked_seconds += wire.blocked_seconds
                self._lost()
                self._first_try.set()
                await wire.close()
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            pause = min(pause * 2, _LONGEST_PAUSE)
