"""What httptools lets through although two parsers could read it differently (request smuggling, RFC 9112)."""

from collections.abc import Sequence
from typing import Final

_ONCE: Final = (b"host", b"transfer-encoding")
"""Headers that decide where a request ends and for whom it is. (Content-Length httptools looks after.)"""


class Doubtful(Exception):
    """The request is refused with `status`; `message` says what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def check_framing(version: str, headers: Sequence[tuple[bytes, bytes]], *, upgrade: bool) -> None:
    """Check a request's head.

    Args:
        version: of HTTP, as the request line has it.
        headers: names in lower case, and values.
        upgrade: whether another protocol is asked for.

    Raises:
        Doubtful: it is not to be served.
    """
    if version not in ("1.1", "1.0"):
        raise Doubtful(505, "this server speaks HTTP/1.1")
    found = dict(headers)
    if len(found) < len(headers):
        names = [name for name, _ in headers]
        for name in _ONCE:
            if names.count(name) > 1:
                raise Doubtful(400, f"the header {name.decode()} was sent more than once, send it once")
    if version == "1.1" and b"host" not in found:
        raise Doubtful(400, "the header host is required")
    coding = found.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
        raise Doubtful(400, "transfer-encoding may only be chunked, and only in HTTP/1.1")
    if upgrade and (coding is not None or found.get(b"content-length", b"0").strip(b" 0")):
        # The parser would take the body for the other protocol.
        raise Doubtful(400, "a request with a body cannot ask for another protocol, leave the header upgrade out")
