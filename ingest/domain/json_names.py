"""Finds a name that occurs twice in one object of a JSON document. msgspec does not report it.

If the decoded value is encoded as the same bytes, every name is unique: this is fast, and usual for a small document
without spaces. Otherwise names are counted in the bytes and in the decoded value. A name in the bytes is followed by a
colon, so the count in the bytes is never too low; if both counts are equal, every name is unique. The count in the
bytes can be too high, because strings may contain what looks like a name. Then a parser that sees every name decides.
"""

import json
import re
from typing import Any, Final

import msgspec

# The group is empty, so that a list of a million matches is a million times the same object.
_NAME_ENDS: Final = re.compile(rb'"[ \t\n\r]*:()')
_encode: Final = msgspec.json.Encoder().encode
_CONTAINERS: Final = frozenset({dict, list})
MAX_NESTING: Final = 64
"""The most levels of arrays and objects in a body. Python's own limit depends on its version and on the caller."""


class _RepeatedName(Exception):
    """The argument is the name."""


def repeated_name(body: bytes, data: object) -> str | None:
    """Return the first name that occurs twice in an object of `body`, or None; `data` is the decoded body.

    Raises:
        RecursionError: the body has more than MAX_NESTING levels.
    """
    if body.count(b"{") + body.count(b"[") <= MAX_NESTING and _encode(data) == body:
        return None  # nor has it too many levels
    looks_like_names = len(_NAME_ENDS.findall(body))
    if looks_like_names == _names(data):
        return None
    try:
        json.loads(body, object_pairs_hook=_unique, parse_int=_ignored, parse_float=_ignored)
    except _RepeatedName as repeated:
        return str(repeated)
    return None


def _names(value: object, levels: int = MAX_NESTING) -> int:
    """Return the number of names in all objects of `value`. Raises RecursionError: it has more than so many levels."""
    if type(value) is not dict and type(value) is not list:
        return 0
    if not levels:
        raise RecursionError
    children = value.values() if type(value) is dict else value
    names = len(value) if type(value) is dict else 0
    return names + sum([_names(child, levels - 1) for child in children if type(child) in _CONTAINERS])


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise _RepeatedName(name)
        seen.add(name)


def _ignored(_: str) -> None:
    """Skip numbers: they do not matter here, and Python refuses integers with too many digits."""
