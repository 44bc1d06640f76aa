"""Refuses requests whose end two parsers could see in different places (request smuggling, RFC 9112).

httptools accepts them.
"""

from collections.abc import Sequence
from typing import Final

_SINGLE: Final = (b"host", b"transfer-encoding")
"""Headers that decide where a request ends and for which host it is. httptools checks Content-Length itself."""

UNSUPPORTED_VERSION: Final = "this server speaks HTTP/1.1"


class RefusedRequest(Exception):
    """The request is answered with `status`; `message` says what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def check_framing(method: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Check the head of a request.

    Args:
        method: the method of the request line.
        version: the HTTP version of the request line.
        headers: names in lower case, and values.

    Raises:
        RefusedRequest: the request must not be served.
    """
    if version not in ("1.1", "1.0"):
        raise RefusedRequest(505, UNSUPPORTED_VERSION)
    if method == b"CONNECT":
        raise RefusedRequest(400, "this server is not a proxy, CONNECT is not allowed")
    by_name = dict(headers)
    if len(by_name) < len(headers):
        names = [name for name, _ in headers]
        for name in _SINGLE:
            if names.count(name) > 1:
                raise RefusedRequest(400, f"the header {name.decode()} was sent more than once, send it once")
    if version == "1.1" and b"host" not in by_name:
        raise RefusedRequest(400, "the header Host is required")
    coding = by_name.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
        raise RefusedRequest(400, "transfer-encoding may only be chunked, and only in HTTP/1.1")
