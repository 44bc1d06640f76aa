"""The header lines of an HTTP request, names in lower case."""

from collections.abc import Iterable


def joined(lines: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name; of one in several lines the values as one list (RFC 9110, section 5.3)."""
    found: dict[bytes, bytes] = {}
    for name, value in lines:
        found[name] = found[name] + b", " + value if name in found else value
    return found
