"""uvicorn's HTTP protocol with limits: a request's head has a size, and head and body have a time in which to come.

And with answers in one write: uvicorn writes head and body apart, which is two system calls and two packets.
"""

import asyncio
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingest.shim.http.framing import Doubtful, check_framing

MAX_HEAD: Final = 32 * 1024
"""Bytes of names and values; ours need a few hundred, browsers' cookies up to 8 KiB."""
MAX_HEADERS: Final = 100
HEAD_TIMEOUT: Final = 20.0
"""Seconds from the connection, or from the first byte of another request on it, to the end of the head."""
BODY_TIMEOUT: Final = 60.0
"""Seconds from there to the end of the body: 8 MiB at 1.1 Mbit/s."""
_LOOK: Final = 5.0
"""Seconds between two looks at a connection: a timer a connection, not one a request."""


class _TooLarge(Exception):
    """Of a head; httptools turns it into an error of its own."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. What breaks a limit is answered in a line, where there is anybody to read it, and closed."""

    _size = 0
    _what: str | None = "head"
    """What is awaited: head, body, or nothing (None: a request is worked on, or the connection is idle between two)."""
    _since = 0.0
    _watch: asyncio.TimerHandle | None = None
    _refused = False
    _why: tuple[int, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = CoalescingTransport(transport)  # type: ignore[assignment]
        self._since = self.loop.time()
        self._watch = self.loop.call_later(_LOOK, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._what == "head" and not self._refused:
            # A single header that does not end is shown to nobody before it has.
            self._size += len(data)
            if self._size > MAX_HEAD:
                self._refuse(431, "the request's headers are too large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._what is None:
            self._since = self.loop.time()
        self._what, self._size = "head", 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        if self._size > MAX_HEAD or len(self.headers) >= MAX_HEADERS:
            raise _TooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._what = "body"
        upgrade = self.parser.should_upgrade()
        try:
            check_framing(self.parser.get_http_version(), self.headers, upgrade=upgrade)
        except Doubtful as doubt:
            self._why = doubt.status, doubt.message
            raise  # httptools makes an error of its own of it
        super().on_headers_complete()
        if upgrade:
            self.cycle.keep_alive = False  # the parser takes nothing that follows for HTTP

    def on_message_complete(self) -> None:
        self._what = None
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks whether to stay open
        """Who has sent all it has to say may still be told the answer."""
        whole = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if whole:
            self.cycle.keep_alive = False
        return whole

    def on_response_complete(self) -> None:
        self.transport.flush()  # type: ignore[attr-defined] # where no body follows: HEAD, 304
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn has met what is no HTTP, or a callback of ours has raised."""
        if self._why is not None:
            self._refuse(*self._why)
        elif self._size > MAX_HEAD or len(self.headers) >= MAX_HEADERS:
            self._refuse(431, "the request's headers are too large")
        else:
            self._refuse(400, "this is no valid HTTP request")

    def _look(self) -> None:
        limit = {"head": HEAD_TIMEOUT, "body": BODY_TIMEOUT}.get(self._what or "")
        if limit is not None and self.loop.time() - self._since > limit:
            self._refuse(408, f"the request's {self._what} did not come in time")
        elif not self.transport.is_closing():
            self._watch = self.loop.call_later(_LOOK, self._look)

    def _refuse(self, status: int, why: str) -> None:
        self._refused = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False  # a whole request came before, and may be accepted: its answer, then the end
            return
        if not self.pipeline and (cycle is None or cycle.response_complete or not cycle.response_started):
            body: Any = msgspec.json.encode({"error": why})
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (status, len(body), body)
            )
        self.transport.close()


class CoalescingTransport:
    """A transport that holds the head of an answer until its body comes, so that both leave together."""

    __slots__ = ("_head", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.endswith(b"\r\n\r\n") and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100"):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Send a head that no body follows."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
