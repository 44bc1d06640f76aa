"""The one place that goes below aio-pika's surface: an aiormq connection with a fast lane for content.

aiormq does the handshake, authentication, TLS, heartbeats, channels and every RPC. What travels once a message
(publishes, deliveries, returns, confirms, acks) passes through Python objects, queues and tasks there, which is most
of what a message costs. Here a stream reader splits the frames as they arrive: those of a fast channel go straight to
its `FrameSink`, all others on to aiormq as if they had just been read. The other way, whole frames are written to the
transport, many in one buffer; the transport keeps them in order with aiormq's.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, SupportsIndex

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.connection import TransportFactory
from yarl import URL

from ingest.broker.rabbitmq.amqp import codec
from ingest.domain.errors import BrokerUnavailable

CONNECT_TIMEOUT: Final = 10.0
CLOSE_TIMEOUT: Final = 5.0


class FrameSink(Protocol):
    """What receives the content frames of one channel, synchronously and in order; it must not raise."""

    def method(self, method: int, data: bytes, start: int) -> bool:
        """A method frame, arguments from `start`. False: not mine, aiormq shall have it."""
        ...

    def header(self, data: bytes, start: int) -> bool: ...

    def body(self, part: bytes) -> bool: ...


class Connection:
    """One connection. `blocked` is the broker's reason (a resource alarm) while it takes no publishes."""

    def __init__(self, url: URL, name: str, heartbeat: int, context: ssl.SSLContext | None) -> None:
        self.blocked: str | None = None
        self._blocked_since = 0.0
        self._blocked_before = 0.0
        self.sinks: dict[int, FrameSink] = {}
        address = url.update_query(heartbeat=str(heartbeat), name=name)
        self._factory = _Transport(self, context)
        self._connection = aiormq.connect(address, context=context, transport_factory=self._factory).connection

    async def connect(self) -> None:
        """Raises BrokerUnavailable; the message never has the password."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._connection.connect()
        # aiormq lets a StopAsyncIteration out where the other side closes in the middle of the handshake.
        except (aiormq.exceptions.AMQPError, OSError, EOFError, TimeoutError, StopAsyncIteration) as error:
            self.abort()
            raise BrokerUnavailable(f"cannot connect to {self}: {error or 'no answer'}") from error
        except BaseException:
            self.abort()
            raise

    async def channel(self, *, confirms: bool) -> AbstractChannel:
        """Open a channel; give it a lane with `lanes[channel.number]`. Raises BrokerUnavailable."""
        try:
            return await self._connection.channel(publisher_confirms=confirms, timeout=CONNECT_TIMEOUT)
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError) as error:
            raise BrokerUnavailable(f"{self} opens no channel: {error}") from error

    @property
    def frame_max(self) -> int:
        """Bytes; a negotiated 0 means no limit."""
        return self._connection.connection_tune.frame_max or 131_072

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._connection.is_closed or self._factory.writer.is_closing()

    @property
    def blocked_seconds(self) -> float:
        """For how long it has been blocked in all."""
        now = time.monotonic() - self._blocked_since if self.blocked is not None else 0.0
        return self._blocked_before + now

    def block(self, why: str | None) -> None:
        """The broker takes no publishes, for this reason; None: it takes them again."""
        before = self.blocked_seconds
        self.blocked, self._blocked_before, self._blocked_since = why, before, time.monotonic()

    def write(self, buffer: bytes) -> None:
        """Queue whole frames for sending; returns at once."""
        self._factory.writer.write(buffer)

    async def drain(self) -> None:
        """Wait while too much is queued for sending. Raises ConnectionError when the connection is lost."""
        await self._factory.writer.drain()

    async def close(self) -> None:
        """Say goodbye; bounded in time, and twice is fine."""
        # Apart: it may take longer than its time limit, and end with what was meant for somebody else.
        closing = asyncio.ensure_future(self._connection.close(timeout=CLOSE_TIMEOUT))
        try:
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT + 1)
        finally:
            if not closing.done() or closing.cancelled() or closing.exception() is not None:
                self.abort()
                closing.cancel()

    def abort(self) -> None:
        """Drop the connection without a word."""
        if self._factory.connected:
            self._factory.writer.transport.abort()

    def __str__(self) -> str:
        return f"RabbitMQ at {self._connection.url.host}:{self._connection.url.port}"


class _Transport(TransportFactory):
    """Opens the connection as asyncio.open_connection does, but with our reader."""

    def __init__(self, wire: Connection, context: ssl.SSLContext | None) -> None:
        self._wire = wire
        self._context = context
        self.connected = False
        self.writer: asyncio.StreamWriter

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        context = self._context
        if url.scheme == "amqps" and context is None:
            context = await kwargs["ssl_context_provider"].get_context()
        reader = FrameDemultiplexer(self._wire, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(
            lambda: protocol, url.host or "localhost", url.port or 5672, ssl=context
        )
        self.writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self.connected = True
        return reader, self.writer


class FrameDemultiplexer(asyncio.StreamReader):
    """Gives the frames of fast channels to their lanes and everything else to aiormq."""

    def __init__(self, wire: Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._wire = wire
        self._lanes = wire.sinks
        self._tail = b""
        self._foreign = False
        self._last_heartbeat = 0.0

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        if self._foreign:
            super().feed_data(data)
            return
        data = self._tail + bytes(data) if self._tail else bytes(data)
        position, end, others = 0, len(data), []
        while end - position >= codec.OVERHEAD:
            kind, channel, size = codec.frame_head.unpack_from(data, position)
            stop = position + size + codec.OVERHEAD
            if kind > codec.HEARTBEAT or (stop <= end and data[stop - 1] != codec.FRAME_END):
                self._foreign = True  # not AMQP 0-9-1: aiormq says so in its own words
                others.append(data[position:])
                position = end
                break
            if stop > end:
                break
            if not self._fast(kind, channel, data, position + 7, stop - 1):
                others.append(data[position:stop])
            position = stop
        self._tail = data[position:]
        self._pass_on(others)

    def _pass_on(self, others: list[bytes]) -> None:
        # aiormq takes a connection on which it reads nothing for dead; traffic in the fast lane is life too.
        now = time.monotonic()
        if others or now - self._last_heartbeat >= 1.0:
            self._last_heartbeat = now
            super().feed_data(b"".join(others) or codec.HEARTBEAT_FRAME)

    def _fast(self, kind: int, channel: int, data: bytes, start: int, stop: int) -> bool:
        lane = self._lanes.get(channel)
        if lane is None:
            if channel == 0 and kind == codec.METHOD:
                self._note_alarm(data, start)
            return False
        if kind == codec.BODY:
            return lane.body(data[start:stop])
        if kind == codec.HEADER:
            return lane.header(data, start)
        return kind == codec.METHOD and lane.method(codec.method_id.unpack_from(data, start)[0], data, start + 4)

    def _note_alarm(self, data: bytes, start: int) -> None:
        method = codec.method_id.unpack_from(data, start)[0]
        if method == codec.CONNECTION_BLOCKED:
            self._wire.block(data[start + 5 : start + 5 + data[start + 4]].decode("utf-8", "replace"))
        elif method == codec.CONNECTION_UNBLOCKED:
            self._wire.block(None)


class ContentAssembler:
    """Puts the frames of one content together: method, header, then bodies until the size is reached.

    Calls `done(method_arguments, properties, body)` once complete.
    """

    def __init__(self, done: Callable[[Any, dict[str, Any], bytes], None]) -> None:
        self._done = done
        self._reader = codec.PropertyReader()
        self._arguments: Any = None
        self._properties: dict[str, Any] = {}
        self._missing = 0
        self._parts: list[bytes] = []

    def begin(self, arguments: Any) -> None:
        """A content method (deliver or return) has come."""
        self._arguments = arguments

    def header(self, data: bytes, start: int) -> bool:
        if self._arguments is None:
            return False
        self._missing, self._properties = self._reader.read(data, start)
        if not self._missing:
            self._finish(b"")
        return True

    def body(self, part: bytes) -> bool:
        if self._arguments is None:
            return False
        self._missing -= len(part)
        if self._missing > 0:
            self._parts.append(part)
        elif self._parts:
            self._parts.append(part)
            self._finish(b"".join(self._parts))
            self._parts = []
        else:
            self._finish(part)
        return True

    def _finish(self, body: bytes) -> None:
        arguments, self._arguments = self._arguments, None
        self._done(arguments, self._properties, body)
