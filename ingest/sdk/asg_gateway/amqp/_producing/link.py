"""The connection of a producer and its channels. A lost one is replaced when it is needed."""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, Protocol

from aio_pika.abc import AbstractConnection

from asg_gateway._backoff import Backoff
from asg_gateway._errors import BrokerUnavailableError
from asg_gateway.amqp._cancellation import is_cancelled
from asg_gateway.amqp._closing import closed
from asg_gateway.amqp._connection import Address, broker_errors
from asg_gateway.amqp._producing.channels import AioPikaChannel, ConfirmChannel, Shared
from asg_gateway.amqp._producing.coalescing import CoalescingConnection

_OPEN_TIMEOUT: Final = 10.0
"""Seconds for opening a channel. Without a limit, it would wait for as long as RabbitMQ blocks the connection."""
_CLOSE_TIMEOUT: Final = 5.0
_log = logging.getLogger("asg_gateway.amqp")


class Connection(Protocol):
    """What the link needs of a connection."""

    @property
    def is_open(self) -> bool: ...
    async def channel(self) -> ConfirmChannel: ...
    async def close(self) -> None: ...


class Connector(Protocol):
    """Opens connections. `str` of it is the address without the password."""

    async def connect(self) -> Connection: ...


class AioPikaConnector:
    """Opens connections of aio-pika to the nodes of an address in turn; `name` is shown in RabbitMQ's management."""

    def __init__(self, address: Address, name: str) -> None:
        self._address = address
        self._name = name

    async def connect(self) -> Connection:
        """Connect. Raises BrokerRefusedError, BrokerUnavailableError."""
        connection = await self._address.connect(self._name, CoalescingConnection)
        return AioPikaConnection(connection, str(self._address))

    def __str__(self) -> str:
        return str(self._address)


class AioPikaConnection:
    """A connection of aio-pika."""

    def __init__(self, connection: AbstractConnection, where: str) -> None:
        self._connection = connection
        self._where = where

    @property
    def is_open(self) -> bool:
        return self._connection.connected.is_set()

    async def channel(self) -> ConfirmChannel:
        """Open a channel. Raises BrokerRefusedError, BrokerUnavailableError."""
        try:
            with broker_errors(self._where):
                async with asyncio.timeout(_OPEN_TIMEOUT):
                    return await AioPikaChannel.open(self._connection)
        except RuntimeError as error:  # the connection was lost meanwhile
            raise BrokerUnavailableError(f"RabbitMQ at {self._where}: the connection was lost") from error

    async def close(self) -> None:
        await self._connection.close()


class Link:
    """One connection, and the channel on it that messages share. It connects when a channel is needed.

    Args:
        connector: opens connections.
        pauses: between failed attempts to connect.
    """

    def __init__(self, connector: Connector, pauses: Backoff) -> None:
        self.closed = False
        self.current: Shared | None = None
        self._connector = connector
        self._pauses = pauses
        self._failed = False
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._opening: asyncio.Task[Shared] | None = None
        self._background: set[asyncio.Task[None]] = set()

    def __str__(self) -> str:
        return str(self._connector)

    async def shared(self) -> Shared:
        """Return the shared channel, a new one if it is closed or retired.

        Raises:
            BrokerRefusedError: login or virtual host are wrong.
            BrokerUnavailableError: it cannot be opened now, or the link is closed.
        """
        if (current := self.current) is not None and not current.channel.is_closed:
            return current
        self._check_open()
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await self._waited(asyncio.shield(self._opening))

    async def private(self) -> ConfirmChannel:
        """Open another channel. Errors are those of `shared`."""
        self._check_open()
        async with self._connecting:
            if self._connection is not None and self._connection.is_open:
                try:
                    return await self._connection.channel()
                except BrokerUnavailableError as error:
                    _log.warning("rabbitmq_channel_failed address=%s error=%s", self, error)
            if (lost := self._connection) is not None:
                _log.warning("rabbitmq_reconnecting address=%s", self)
                self._connection = None
                self._spawn(closed(lost.close(), _CLOSE_TIMEOUT))
            self._connection = await self._connector.connect()
            return await self._connection.channel()

    def retire(self, shared: Shared) -> None:
        """Give a channel no more messages, and close it when it has answered those in flight."""
        if self.current is shared:
            self.current = None
        shared.retired = True
        self.close_if_retired(shared)

    def close_if_retired(self, shared: Shared) -> None:
        """Close a channel that is retired if it has no messages in flight."""
        if shared.retired and not shared.in_flight:
            self.discard(shared.channel)

    def discard(self, channel: ConfirmChannel) -> None:
        """Close a channel in the background."""
        if not channel.is_closed:
            self._spawn(closed(channel.close(), _CLOSE_TIMEOUT))

    async def close(self) -> None:
        """Close the connection. Takes at most a few seconds, even if RabbitMQ does not answer."""
        self.closed = True
        self.current = None
        if self._opening is not None:
            self._opening.cancel()
        if (connection := self._connection) is not None:
            self._connection = None
            self._spawn(closed(connection.close(), _CLOSE_TIMEOUT))
        await asyncio.gather(*self._background)

    async def _open(self) -> Shared:
        try:
            if self._failed:
                await asyncio.sleep(self._pauses.next())
            shared = Shared(await self.private(), asyncio.get_running_loop().time())
        except BaseException:
            self._failed = True
            raise
        self._failed = False
        self._pauses.reset()
        self.current = shared
        return shared

    def _opened(self, opening: asyncio.Task[Shared]) -> None:
        self._opening = None
        if not opening.cancelled() and (error := opening.exception()) is not None:
            _log.warning("rabbitmq_unavailable %s", error)

    async def _waited(self, opening: Awaitable[Shared]) -> Shared:
        """Wait for an attempt that others share; raise an error of the caller's own."""
        try:
            return await opening
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self._check_open()
            raise BrokerUnavailableError(f"RabbitMQ at {self}: the connection was closed") from error

    def _check_open(self) -> None:
        if self.closed:
            raise BrokerUnavailableError("the producer was closed before RabbitMQ confirmed the message")

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
