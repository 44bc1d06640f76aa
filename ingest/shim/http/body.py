"""Reading bodies and sending JSON in plain ASGI: the few bytes that every request of the hot path costs."""

import random
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from ingest.domain.submissions import MAX_BODY
from ingest.shim.problems import Header, not_json_type, repeated, too_full, too_large

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON: Final[Header] = (b"content-type", b"application/json")
# Of two, a proxy may have gone by the first and we by the last.
_ONCE: Final = {
    name.lower().encode(): name for name in ("Authorization", "Content-Type", "Content-Length", "Idempotency-Key")
}
_MAX_REQUEST_ID: Final = 200
_DISCARD: Final = 8 * MAX_BODY
MAX_HELD: Final = 16 * MAX_BODY
"""Bytes of bodies that one process holds at a time, from the first byte read to the answer."""


class BodyMemoryBudget:
    """How many bytes of bodies a process holds, and may hold."""

    def __init__(self, limit: int = MAX_HELD) -> None:
        self.limit = limit
        self.held = 0


class Reservation:
    """The bytes of one request's body; `release` them once it is answered."""

    __slots__ = ("_room", "_size")

    def __init__(self, room: BodyMemoryBudget) -> None:
        self._room = room
        self._size = 0

    def fits(self, size: int) -> bool:
        """Count `size` more bytes if there is room."""
        if self._room.held + size > self._room.limit:
            return False
        self._room.held += size
        self._size += size
        return True

    def release(self) -> None:
        self._room.held -= self._size
        self._size = 0


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


def request_id(headers: dict[bytes, bytes]) -> bytes:
    """The client's `X-Request-Id` where it is printable and short, else a fresh one."""
    given = headers.get(b"x-request-id")
    if given and len(given) <= _MAX_REQUEST_ID and all(32 < byte < 127 for byte in given):
        return given
    return b"%016x" % random.getrandbits(64)


def refuse_repeats(headers: Iterable[Header]) -> None:
    """Raises Problem (400) where a header that decides something stands twice, even with one value."""
    seen = set()
    for name, _ in headers:
        if name in _ONCE and name in seen:
            raise repeated(_ONCE[name])
        seen.add(name)


async def read_json_body(headers: dict[bytes, bytes], receive: Receive, held: Reservation) -> bytes:
    """The whole body, counted in `held`. Raises Problem (413, 415, 503) or ClientGone."""
    content_type, _, parameters = headers.get(b"content-type", b"").partition(b";")
    charset = parameters.strip().lower().replace(b'"', b"")
    if content_type.strip().lower() != b"application/json" or charset not in (b"", b"charset=utf-8"):
        raise not_json_type()
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise not_json_type()
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > MAX_BODY:
        if b"expect" not in headers:  # else the client waits for our word, and hears it
            await _discard(0, receive)
        raise too_large()
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body"):
        if not held.fits(len(body)):
            raise too_full()
        if len(body) > MAX_BODY:
            raise too_large()
        return body
    return await _read_on(message, receive, held)


async def _read_on(message: MutableMapping[str, Any], receive: Receive, held: Reservation) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] != "http.request":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        refusal = too_large if size > MAX_BODY else None if held.fits(len(part)) else too_full
        if refusal is not None:
            parts.clear()
            held.release()
            await _discard(size, receive, message)
            raise refusal()
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


async def _discard(size: int, receive: Receive, message: MutableMapping[str, Any] | None = None) -> None:
    """Read what is too large to its end, within reason: a client that is still sending would not see the answer."""
    while size < _DISCARD and (message is None or message.get("more_body")):
        message = await receive()
        size += len(message.get("body", b""))


async def send_json(send: Send, status: int, body: bytes, headers: list[Header]) -> None:
    """Send a whole response."""
    length = b"%d" % len(body)
    await send(
        {"type": "http.response.start", "status": status, "headers": [_JSON, (b"content-length", length), *headers]}
    )
    await send({"type": "http.response.body", "body": body})
