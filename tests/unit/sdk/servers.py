"""Real HTTP servers for the SDK: they answer each submission, after a delay, or byte by byte for ever."""

import asyncio
import contextlib
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.served import served
from tests.unit.sdk.gateway import TASK


class _KeepAliveServer(ThreadingHTTPServer):
    request_queue_size = 256


class TaskServer:
    """Answers each submission with its own key as task_id, so that a mixed-up answer shows.

    Args:
        delay: seconds before each answer.
        tls: the context for https; None for http.
    """

    def __init__(self, delay: float = 0.0, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self._tls = tls
        self._delay = delay
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve in threads; yield the base URL."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with outer._lock:
                    outer.connections += 1

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(outer._delay)
                content = json.dumps(TASK | {"task_id": body["idempotency_key"]}).encode()
                self.wfile.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        server = _KeepAliveServer(("127.0.0.1", 0), Handler)
        if self._tls is not None:
            server.socket = self._tls.wrap_socket(server.socket, server_side=True)
        with served(server):
            yield f"{'http' if self._tls is None else 'https'}://127.0.0.1:{server.server_port}"


class AsyncTaskServer:
    """Answers each request after `delay` seconds. `most` is the largest number of connections at once."""

    def __init__(self, delay: float) -> None:
        self.most = 0
        self._open = 0
        self._delay = delay

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve; yield the base URL."""
        async with _running(self._serve, backlog=256) as url:
            yield url

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        self.most = max(self.most, self._open)
        content = json.dumps(TASK).encode()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(lengths[0]))
                await asyncio.sleep(self._delay)
                writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        self._open -= 1


@contextlib.asynccontextmanager
async def dripping(*, head: bytes, unread: bool = False) -> AsyncIterator[str]:
    """Serve `head` and then one byte every 50 ms, for ever; yield the base URL.

    Args:
        head: what is sent at once.
        unread: read the request as slowly, too.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while unread:
                await asyncio.sleep(0.05)
                if not await reader.read(2_000):
                    break
            writer.write(head)
            while not unread:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)

    async with _running(serve, limit=2_000) as url:
        yield url


@contextlib.asynccontextmanager
async def _running(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]], **options: int
) -> AsyncIterator[str]:
    """Serve each connection; yield the base URL. At the end, close them."""
    connections: set[asyncio.Task[None]] = set()

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await serve(reader, writer)

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(serve_and_close(reader, writer)))

    server = await asyncio.start_server(start, "127.0.0.1", 0, **options)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
