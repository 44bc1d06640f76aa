"""Whether a name stands twice in one object of a JSON document, which msgspec does not tell.

Names are counted in the bytes and in what was decoded of them. Every name in the bytes is followed by a colon, so what
looks like a name in the bytes is never less than the names that are there; where the two counts are equal, each name is
unique. Where more looks like names (within strings it may), a parser that sees every name has the last word.
"""

import json
import re
from typing import Any, Final

_NAME_ENDS: Final = re.compile(rb'"[ \t\n\r]*:')


_CONTAINERS: Final = frozenset({dict, list})


class _Twice(Exception):
    """Carries the name."""


def repeated_name(body: bytes, data: object) -> str | None:
    """The first name that an object in `body` has twice, if any; `data` is the body decoded.

    Raises:
        RecursionError: it is nested too deeply.
    """
    looks_like_names = len(_NAME_ENDS.findall(body))
    if looks_like_names == _names(data):
        return None
    try:
        json.loads(body, object_pairs_hook=_unique, parse_int=_ignored, parse_float=_ignored)
    except _Twice as twice:
        return str(twice)
    return None


def _names(value: object) -> int:
    """How many names the objects in `value` have."""
    if type(value) is dict:
        return len(value) + sum([_names(child) for child in value.values() if type(child) in _CONTAINERS])
    if type(value) is list:
        return sum([_names(child) for child in value if type(child) in _CONTAINERS])
    return 0


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise _Twice(name)
        seen.add(name)


def _ignored(_: str) -> None:
    """Numbers do not matter here, and Python's integers have a limit of digits."""
