"""uvicorn's HTTP protocol with limits: the head of a request has a largest size, head and body have a time limit.

It also sends each answer with one write, and the answers of a micro-batch one after the other (`DeferringTransport`).
"""

import asyncio
import math
import resource
from enum import StrEnum
from typing import Any, ClassVar, Final

import httptools
import msgspec
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ingest.shim.http.body import request_id_of
from ingest.shim.http.framing import RefusedRequest, check_framing
from ingest.shim.http.upgrade import feed

MAX_HEAD: Final = 32 * 1024
"""Bytes of names and values. Our clients need a few hundred, cookies of browsers up to 8 KiB."""
MAX_HEADERS: Final = 100
HEAD_TOO_LARGE: Final = f"the request has more than {MAX_HEADERS} headers, or more than {MAX_HEAD} bytes of headers"
HEAD_TIMEOUT: Final = 20.0
"""Seconds from the connection, or from the first byte of a further request on it, to the end of the head."""
BODY_TIMEOUT: Final = 60.0
"""Seconds from then to the end of the body: 8 MiB at 1.1 Mbit/s."""
BODY_MIN_RATE: Final = 4096
"""Bytes per second at which a body must arrive: an upload holds memory."""
BODY_MAX_LAG: Final = 10.0
"""Seconds that a body may be behind its minimum rate. Bytes that arrive faster do not earn more time."""
HEAD_TOO_SLOW: Final = f"the request's headers did not arrive within {HEAD_TIMEOUT:g} s"
BODY_TOO_SLOW: Final = (
    f"the request's body arrived too slowly: send at least {BODY_MIN_RATE} bytes per second, "
    f"and all of it within {BODY_TIMEOUT:g} s"
)
_OTHER_FILES: Final = 512
"""Open files of the process that are not its clients' connections, at most."""
_MAX_HELD: Final = 64 * 1024
"""Bytes that a transport holds before it writes them."""
CHECK_INTERVAL: Final = 5.0
"""Seconds between two checks of the time limits. One timer per connection costs less than one per request."""

_log = structlog.get_logger(__name__)


class _Awaiting(StrEnum):
    """The part of a request that the connection waits for."""

    HEAD = "head"
    BODY = "body"
    NOTHING = ""
    """A request is being answered, or the connection is idle."""


_TIME_LIMITS: Final = {
    _Awaiting.HEAD: (HEAD_TIMEOUT, HEAD_TOO_SLOW),
    _Awaiting.BODY: (BODY_TIMEOUT, BODY_TOO_SLOW),
}
"""The seconds for a part of a request, and the error after them."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection.

    A request that breaks a limit is answered, if the client can still read, and the connection closed. If there are
    too many connections, the one that has been silent longest is closed.
    """

    max_connections: ClassVar[int] = 8192
    """Connections of one server, at most; fewer if the process may not open so many files."""

    _head_size = 0
    _completed = False
    """Whether a request was complete in the data that is being parsed."""
    _last_complete: RequestResponseCycle | None = None
    """The last request that arrived completely."""
    _awaiting = _Awaiting.HEAD
    _since = 0.0
    _body_deadline = math.inf
    """When the body will be too far behind its minimum rate, if nothing more of it arrives."""
    _timer: asyncio.TimerHandle | None = None
    _refused = False
    _refusal: RefusedRequest | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = DeferringTransport(transport, self.loop)  # type: ignore[assignment]
        self._since = self.loop.time()
        self._timer = self.loop.call_later(CHECK_INTERVAL, self._check_timeouts)
        if len(self.connections) > self.most_connections():
            self._make_room()

    @classmethod
    def most_connections(cls) -> int:
        """Return the number of connections that a server holds open."""
        return min(cls.max_connections, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._completed = False
        self._unset_keepalive_if_required()
        try:
            feed(self, data)
        except httptools.HttpParserError:
            self._refuse_invalid()
        if self._awaiting is _Awaiting.BODY:
            self._body_deadline = min(self.loop.time() + BODY_MAX_LAG, self._body_deadline + len(data) / BODY_MIN_RATE)
        elif self._awaiting is _Awaiting.HEAD and not self._refused and not self._completed:
            # httptools reports a header only once it is complete, so an endless one is counted here.
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._refuse(431, HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._awaiting is _Awaiting.NOTHING:
            self._since = self.loop.time()
        self._awaiting, self._head_size = _Awaiting.HEAD, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser for each header, and for each trailer of a chunked body."""
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD or len(self.headers) >= MAX_HEADERS:
            self._refusal = RefusedRequest(431, HEAD_TOO_LARGE)
            raise self._refusal  # httptools replaces it with an error of its own
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._awaiting, self._body_deadline = _Awaiting.BODY, math.inf
        try:
            check_framing(self.parser.get_method(), self.parser.get_http_version(), self.headers)
        except RefusedRequest as refusal:
            self._refusal = refusal
            raise
        super().on_headers_complete()
        self.headers = []  # trailers, which are ignored; the scope has the headers

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the body follows
        self._awaiting, self._completed = _Awaiting.NOTHING, True
        self._last_complete = self.cycle
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks whether to keep the connection open
        """Keep it open for the answers to the requests that the client has sent completely."""
        return self._end_after_complete_requests()

    def _make_room(self) -> None:
        """Close the connections that have been silent longest, or this one if all others are being answered.

        One in a hundred is closed, so that a flood of connections does not need a search for each.
        """
        others = [other for other in self.connections if other is not self and isinstance(other, LimitedHttpProtocol)]
        silent = sorted((other for other in others if other.is_silent), key=lambda other: other.silent_since)
        for other in silent[: 1 + len(silent) // 100] or [self]:
            self.connections.discard(other)
            other.transport.close()

    @property
    def is_silent(self) -> bool:
        """Whether no request is being received or answered: the client has sent nothing, or the start of a head."""
        return self._awaiting is _Awaiting.HEAD or (
            self._awaiting is _Awaiting.NOTHING
            and self._last_complete is not None
            and self._last_complete.response_complete
        )

    @property
    def silent_since(self) -> float:
        """When the connection, or its last request, has begun; seconds of the event loop's clock."""
        return self._since

    def _refuse_invalid(self) -> None:
        """Refuse what the parser or one of the callbacks above does not take."""
        refusal = self._refusal or RefusedRequest(400, "invalid HTTP request")
        self._refuse(refusal.status, refusal.message)

    def _check_timeouts(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused:
            self._since += CHECK_INTERVAL  # the client waits for the server
            self._body_deadline = now + BODY_MAX_LAG
        limit = _TIME_LIMITS.get(self._awaiting)
        is_slow = self._awaiting is _Awaiting.BODY and now > self._body_deadline
        if limit is not None and (is_slow or now - self._since > limit[0]):
            self._refuse(408, limit[1])
        elif not self.transport.is_closing():
            self._timer = self.loop.call_later(CHECK_INTERVAL, self._check_timeouts)

    def _refuse(self, status: int, message: str) -> None:
        self._refused = True
        name = request_id_of({})
        _log.debug("request_refused", status=status, error=message, request_id=name.decode())
        if self._end_after_complete_requests():
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body: Any = msgspec.json.encode({"error": message})
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
                b"connection: close\r\n\r\n%b" % (status, len(body), name, body)
            )
        self.transport.close()

    def _end_after_complete_requests(self) -> bool:
        """Drop the incomplete request, and close the connection after the answers to the complete ones.

        They may have been accepted, so the client must get the answers. Return False if all are answered.
        """
        last = self._last_complete
        if last is None or last.response_complete:
            return False
        last.keep_alive = False
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()
        return True


class DeferringTransport:
    """A transport that holds what is written until the event loop has run everything that is ready now.

    So an answer is one packet. And the answers of a micro-batch are sent at once: a client on the same machine, such as
    a proxy, wakes up once for all of them instead of once for each.
    """

    __slots__ = ("_held", "_loop", "_size", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write data soon."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._size += len(data)
        if self._size > _MAX_HELD:
            self._flush()

    def close(self) -> None:
        """Write what is held, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held, self._size = self._held, [], 0
        if held and not self.is_closing():
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
