"""The header lines of an HTTP request, names in lower case."""

from collections.abc import Iterable


def joined(lines: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name. Several lines of one header become one list (RFC 9110, section 5.3)."""
    headers: dict[bytes, bytes] = {}
    for name, value in lines:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers
