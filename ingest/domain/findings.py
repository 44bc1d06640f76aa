"""What a check found: how bad, what, and what to do about it."""

from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """ERROR: it does not work, or can break what was promised. WARNING: it works, worse than it could."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True):
    """`area` is what was looked at, `what` a sentence, `do` what to do, empty where all is well. Never a secret."""

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
