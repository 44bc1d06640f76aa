"""An aiormq connection on which content frames bypass aiormq. Only this package goes below aio-pika's API.

aiormq does the handshake, authentication, TLS, heartbeats, channels and every RPC. Content (publishes, deliveries,
returns, confirms, acks) passes through objects, queues and tasks there, once per message, and that is most of what a
message costs. Here a `FrameDemultiplexer` splits the frames as they arrive: content frames of our channels go to a
`FrameSink`, all others to aiormq, as if it had read them itself. In the other direction many whole frames are written
to the transport in one buffer; the transport keeps them in order with aiormq's frames.
"""

import asyncio
import ssl
import time
from typing import Any, Final

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.connection import TransportFactory
from yarl import URL

from ingest.broker.rabbitmq.amqp.frames import FrameDemultiplexer, FrameSink
from ingest.broker.rabbitmq.versions import version_of
from ingest.domain.errors import BrokerUnavailable, cause_of

CONNECT_TIMEOUT: Final = 10.0
CONNECT_ERRORS: Final = (aiormq.exceptions.AMQPError, OSError, EOFError, TimeoutError, StopAsyncIteration)
"""What aiormq raises if it cannot connect; StopAsyncIteration if the other side closes during the handshake."""
_WRITE_BUFFER: Final = 4 * 1024 * 1024
"""Bytes to queue before `drain` waits for the socket."""
CLOSE_TIMEOUT: Final = 5.0


class Connection:
    """One connection.

    `blocked` is the broker's reason (a resource alarm) while it blocks publishers, otherwise None.
    """

    def __init__(self, url: URL, name: str, heartbeat: int, context: ssl.SSLContext | None) -> None:
        self.blocked: str | None = None
        self._blocked_since = 0.0
        self._blocked_before = 0.0
        self.sinks: dict[int, FrameSink] = {}
        """Channel number to its sink."""
        address = url.update_query(heartbeat=str(heartbeat), name=name)
        self._transport = _Transport(self, context)
        self._connection = aiormq.connect(address, context=context, transport_factory=self._transport).connection

    async def connect(self) -> None:
        """Connect. Raises BrokerUnavailable, whose message never contains the password."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._connection.connect()
            self._transport.writer.transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        except CONNECT_ERRORS as error:
            self.abort()
            raise BrokerUnavailable(
                f"cannot connect to {self}: {connect_problem(error, self._connection.url)}"
            ) from error
        except BaseException:
            self.abort()
            raise

    async def channel(self, *, confirms: bool) -> AbstractChannel:
        """Open a channel. Raises BrokerUnavailable.

        The caller must then register the channel's sink: `sinks[channel.number] = sink`.
        """
        try:
            return await self._connection.channel(publisher_confirms=confirms, timeout=CONNECT_TIMEOUT)
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError) as error:
            raise BrokerUnavailable(f"cannot open a channel on {self}: {cause_of(error)}") from error

    @property
    def queued(self) -> int:
        """Bytes that wait in this process, because the socket does not take them."""
        return self._transport.writer.transport.get_write_buffer_size()

    @property
    def frame_max(self) -> int:
        """The largest frame in bytes. If none was negotiated, 128 KiB."""
        return self._connection.connection_tune.frame_max or 131_072

    @property
    def server_version(self) -> str:
        """The broker's version, once connected."""
        return version_of(self._connection.server_properties)

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._connection.is_closed or self._transport.writer.is_closing()

    @property
    def blocked_seconds(self) -> float:
        """For how many seconds the connection has been blocked in total."""
        now = time.monotonic() - self._blocked_since if self.blocked is not None else 0.0
        return self._blocked_before + now

    def block(self, reason: str | None) -> None:
        """Record why the broker blocks publishers; None if it no longer does."""
        before = self.blocked_seconds
        self.blocked, self._blocked_before, self._blocked_since = reason, before, time.monotonic()

    def write(self, buffer: bytes) -> None:
        """Queue whole frames for sending; return at once."""
        self._transport.writer.write(buffer)

    async def drain(self) -> None:
        """Wait while too much is queued for sending. Raises ConnectionError if the connection is lost."""
        await self._transport.writer.drain()
        while self.queued > _WRITE_BUFFER:  # another caller that waited was first
            await self._transport.writer.drain()

    @property
    def reading_paused(self) -> bool:
        """Whether `pause_reading` was called last."""
        return self._transport.reader.reading_paused

    def pause_reading(self) -> None:
        """Read nothing more until `resume_reading`, without closing the connection."""
        self._transport.reader.pause()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.reader.resume()

    async def close(self) -> None:
        """Close the connection within a time limit. A second call has no effect."""
        if self._transport.connected:
            self.resume_reading()  # otherwise the broker's answer is not read
        # aiormq's close() runs in a task, because it may exceed its timeout or raise an error meant for another caller.
        closing = asyncio.ensure_future(self._connection.close(timeout=CLOSE_TIMEOUT))
        try:
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT + 1)
        finally:
            if not closing.done() or closing.cancelled() or closing.exception() is not None:
                self.abort()
                closing.cancel()

    def abort(self) -> None:
        """Drop the connection without closing it properly."""
        if self._transport.connected:
            self._transport.writer.transport.abort()

    def __str__(self) -> str:
        return f"RabbitMQ at {self._connection.url.host}:{self._connection.url.port}"


def connect_problem(error: BaseException | None, url: URL) -> str:
    """Return why a connection to the URL failed, as a clause without the password."""
    # RabbitMQ answers Connection.Open with Close only for the virtual host; aiormq's error says neither.
    if isinstance(error, aiormq.exceptions.InvalidFrameError) and "Connection.OpenOk" in str(error):
        vhost, user = url.path[1:] or "/", url.user or "guest"
        return (
            f"virtual host {vhost} does not exist, or user {user} may not use it: correct the URL, or run "
            f"`rabbitmqctl add_vhost {vhost}` and `rabbitmqctl set_permissions --vhost {vhost} {user} …`"
        )
    if isinstance(error, aiormq.exceptions.ProbableAuthenticationError) and "mechanism PLAIN" in str(error):
        user = url.user or "guest"
        return f"the login of user {user} was refused: check user and password in INGEST_BROKER_URL ({error})"
    return cause_of(error)


class _Transport(TransportFactory):
    """Opens the connection as asyncio.open_connection does, but with a `FrameDemultiplexer` as its reader."""

    def __init__(self, connection: Connection, context: ssl.SSLContext | None) -> None:
        self._connection = connection
        self._context = context
        self.connected = False
        self.reader: FrameDemultiplexer
        self.writer: asyncio.StreamWriter

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        context = self._context
        if url.scheme == "amqps" and context is None:
            context = await kwargs["ssl_context_provider"].get_context()
        self.reader = reader = FrameDemultiplexer(self._connection.sinks, self._connection.block, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(
            lambda: protocol, url.host or "localhost", url.port or 5672, ssl=context
        )
        self.writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self.connected = True
        return reader, self.writer
