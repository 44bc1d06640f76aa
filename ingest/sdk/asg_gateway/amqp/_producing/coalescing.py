"""A connection of aio-pika that writes the frames of many messages together.

aiormq writes each message on its own: a system call and a packet each, which costs RabbitMQ more than the message.
"""

import asyncio
from typing import Any, Final

import aio_pika
import aiormq
from yarl import URL

_MAX: Final = 16 * 1024
"""Bytes that are written without waiting for more."""


class CoalescingWriter(asyncio.StreamWriter):
    """Writes together what is written in successive iterations of the event loop, until one of them adds nothing."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._event_loop = loop
        self._pending: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> None:
        """Write soon."""
        if not self._pending:
            self._event_loop.call_soon(self._flush_unless_more, 0)
        self._pending.append(bytes(data))
        self._size += len(data)
        if self._size > _MAX:
            self.flush()

    def flush(self) -> None:
        """Write now."""
        if self._pending:
            data = b"".join(self._pending)
            self._pending.clear()
            self._size = 0
            super().write(data)

    def _flush_unless_more(self, seen: int) -> None:
        if self._size == seen:
            self.flush()
        elif self._pending:
            self._event_loop.call_soon(self._flush_unless_more, self._size)

    async def drain(self) -> None:
        """Write now, and wait until the transport's buffer has room."""
        self.flush()
        await super().drain()

    def write_eof(self) -> None:
        """Write what is pending, and then the end."""
        self.flush()
        super().write_eof()

    def close(self) -> None:
        """Write what is pending, and close."""
        self.flush()
        super().close()


class _TransportFactory(aiormq.TransportFactory):
    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect. Raises AMQPConnectionError, as the factories of aiormq do."""
        provider: aiormq.SSLContextProvider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        try:
            transport, protocol = await loop.create_connection(
                lambda: asyncio.StreamReaderProtocol(reader, loop=loop), url.host, url.port, ssl=context, **kwargs
            )
        except OSError as error:
            raise aiormq.exceptions.AMQPConnectionError(*error.args) from error
        return reader, CoalescingWriter(transport, protocol, reader, loop)


class CoalescingConnection(aio_pika.Connection):
    """A connection for many small messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kwargs["transport_factory"] = _TransportFactory()  # passed on to aiormq.connect
