"""The result of a check: how severe, what, and what to do about it."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """ERROR: it does not work, or it can break a guarantee. WARNING: it works, but not as well as it could."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True):
    """`area` was checked; `what` is a sentence; `do` says what to do, empty if nothing. Contains no secrets."""

    area: str
    severity: Severity
    what: str
    do: str = ""


def ok(area: str, what: str) -> Finding:
    return Finding(area, Severity.OK, what)


def warning(area: str, what: str, do: str) -> Finding:
    return Finding(area, Severity.WARNING, what, do)


def error(area: str, what: str, do: str) -> Finding:
    return Finding(area, Severity.ERROR, what, do)


def not_checked(names: Iterable[str]) -> str:
    """Return the sentence for a finding that prevents other checks."""
    return f"Not checked: {', '.join(names)}"
