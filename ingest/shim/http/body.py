"""Reading bodies and sending JSON in plain ASGI. Every request of the two POSTs runs this code, so it stays small."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Final

from starlette.types import Message, Receive, Send

from ingest.domain.content import content_problem
from ingest.domain.submissions import MAX_BODY
from ingest.shim import problems
from ingest.shim.problems import Header

_JSON: Final[Header] = (b"content-type", b"application/json")
# A proxy may use the first of two such headers and this server the last.
_SINGLE: Final = {
    name.lower().encode(): name for name in ("Authorization", "Content-Type", "Content-Length", "Idempotency-Key")
}
_MAX_REQUEST_ID: Final = 200
_MAX_DISCARDED: Final = 8 * MAX_BODY
DEFAULT_MEMORY: Final = 8 * MAX_BODY
"""Bytes of bodies that one process holds at a time. A body counts from its first byte until its answer."""
SMALL: Final = 64 * 1024
"""Bytes of a body that may use the part of the memory that is kept for small ones."""


class BodyMemoryBudget:
    """The memory that one process uses for bodies, in bytes.

    Bodies of at most `SMALL` bytes can use all of it, larger ones seven eighths. A customer may hold at most as much of
    each sort as is free for it. So one customer alone gets half, and whatever some customers hold, others find room
    (dynamic thresholds, Choudhury and Hahne, 1998), and a customer's large bodies do not keep out its small ones.
    """

    def __init__(self, limit: int = DEFAULT_MEMORY) -> None:
        self.limit = limit
        self.reserved = 0
        self._small: Counter[str] = Counter()
        self._large: Counter[str] = Counter()

    def reserve(self, customer: str, size: int, *, small: bool) -> bool:
        """Reserve `size` bytes for a customer's body; return False if there is no room for it.

        Args:
            customer: the customer.
            size: the bytes.
            small: whether the whole body so far has at most `SMALL` bytes.
        """
        held, kept = (self._small, 0) if small else (self._large, self.limit // 8)
        if held[customer] + size > self.limit - self.reserved - kept:
            return False
        self.reserved += size
        held[customer] += size
        return True

    def release(self, customer: str, size: int, *, small: bool) -> None:
        """Return what was reserved with the same arguments."""
        held = self._small if small else self._large
        self.reserved -= size
        held[customer] -= size
        if not held[customer]:
            del held[customer]


class Reservation:
    """The memory of one request's body. Call `release` once the request is answered."""

    __slots__ = ("_budget", "_customer", "_large", "_small")

    def __init__(self, budget: BodyMemoryBudget, customer: str) -> None:
        self._budget = budget
        self._customer = customer
        self._small = 0
        self._large = 0

    def grow(self, size: int) -> bool:
        """Reserve `size` more bytes; return False if there is no room for them."""
        small = self._small + self._large + size <= SMALL
        if not self._budget.reserve(self._customer, size, small=small):
            return False
        if small:
            self._small += size
        else:
            self._large += size
        return True

    def release(self) -> None:
        """Return everything to the budget. A second call has no effect."""
        if self._small:
            self._budget.release(self._customer, self._small, small=True)
        if self._large:
            self._budget.release(self._customer, self._large, small=False)
        self._small = self._large = 0


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


def request_id_of(headers: dict[bytes, bytes]) -> bytes:
    """Return the client's `X-Request-Id` if it is printable and short, otherwise a new one."""
    given = headers.get(b"x-request-id")
    if given and len(given) <= _MAX_REQUEST_ID and all(32 < byte < 127 for byte in given):
        return given
    return b"%016x" % random.getrandbits(64)


def refuse_repeated_headers(headers: Iterable[Header]) -> None:
    """Refuse a request that sends a header twice that must be sent once, even with the same value.

    Raises:
        Problem: 400.
    """
    seen = set()
    for name, _ in headers:
        if name in _SINGLE and name in seen:
            raise problems.repeated_header(_SINGLE[name])
        seen.add(name)


async def read_json_body(headers: dict[bytes, bytes], receive: Receive, reservation: Reservation) -> bytes:
    """Return the whole body, with its memory reserved.

    Raises:
        Problem: 413, 415 or 503.
        ClientDisconnected: the body did not arrive completely.
    """
    _check_content(headers)
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > MAX_BODY:
        if b"expect" not in headers:  # a client that sent Expect waits for this answer and sends nothing
            await _discard(0, receive)
        raise problems.too_large()
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body"):
        if not reservation.grow(len(body)):
            raise problems.at_capacity()
        if len(body) > MAX_BODY:
            raise problems.too_large()
        return body
    return await _read_chunks(message, receive, reservation)


def _check_content(headers: dict[bytes, bytes]) -> None:
    content_type = headers.get(b"content-type", b"")
    encoding = headers.get(b"content-encoding", b"")
    if content_type == b"application/json" and not encoding:
        return  # the fast path, for nearly every request
    problem = content_problem(content_type.decode("latin-1"), encoding.decode("latin-1"))
    if problem is not None:
        raise problems.unsupported_content(problem)


async def _read_chunks(message: Message, receive: Receive, reservation: Reservation) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] != "http.request":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY:
            problem = problems.too_large
        elif not reservation.grow(len(chunk)):
            problem = problems.at_capacity
        else:
            problem = None
        if problem is not None:
            chunks.clear()
            reservation.release()
            await _discard(size, receive, message)
            raise problem()
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await receive()


async def _discard(size: int, receive: Receive, message: Message | None = None) -> None:
    """Read the rest of a body, up to a limit: a client that is still sending would not see the answer."""
    while size < _MAX_DISCARDED and (message is None or message.get("more_body")):
        message = await receive()
        size += len(message.get("body", b""))


async def send_json(send: Send, status: int, body: bytes, headers: list[Header]) -> None:
    """Send a whole response."""
    length = b"%d" % len(body)
    await send(
        {"type": "http.response.start", "status": status, "headers": [_JSON, (b"content-length", length), *headers]}
    )
    await send({"type": "http.response.body", "body": body})
