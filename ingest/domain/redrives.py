"""How often a submission was redriven from the dead letters.

Headers of the redriven submission and of its next dead letter have it. They are trusted only if a user of the service
has published the message.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ingest.domain.events import rfc3339

FIRST_DEATH_HEADER: Final = "x-ingest-first-died-at"
REDRIVES_HEADER: Final = "x-ingest-redrives"
HEADERS: Final = (FIRST_DEATH_HEADER, REDRIVES_HEADER)

_COUNT: Final = re.compile("[1-9][0-9]{0,8}")
_LONGEST_TIME: Final = 40
"""Characters of a time in RFC 3339."""
_YEAR_10000: Final = 253_402_300_800
"""In Unix seconds. RFC 3339 has no later time, and `rfc3339` would raise."""


class Redrives(msgspec.Struct, frozen=True):
    """How often a submission was redriven, and when it first became a dead letter: Unix seconds, None if unknown."""

    count: int = 0
    first_died_at: float | None = None

    def next(self, died_at: float | None) -> "Redrives":
        """Return the state after one more redrive. `died_at`: when it became the dead letter, Unix seconds."""
        return Redrives(self.count + 1, died_at if self.first_died_at is None else self.first_died_at)

    def headers(self) -> dict[str, str]:
        """Return it as headers of an AMQP message; none if it was not redriven."""
        if not self.count:
            return {}
        named = {REDRIVES_HEADER: str(self.count)}
        if self.first_died_at is not None:
            named[FIRST_DEATH_HEADER] = rfc3339(int(self.first_died_at * 1000))
        return named


NONE: Final = Redrives()


def redrives_of(headers: Mapping[str, Any]) -> Redrives:
    """Return what the headers of an AMQP message say. Invalid values are ignored."""
    count = headers.get(REDRIVES_HEADER)
    if not isinstance(count, str) or not _COUNT.fullmatch(count):
        return NONE
    first = headers.get(FIRST_DEATH_HEADER)
    seconds = unix_seconds(first) if isinstance(first, str) and len(first) <= _LONGEST_TIME else None
    return Redrives(int(count), seconds if seconds is not None and 0 <= seconds < _YEAR_10000 else None)


def unix_seconds(time: Any) -> float | None:
    """Return Unix seconds of a time in AMQP (datetime, UTC) or JSON (RFC 3339, or a number); None if it is neither."""
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            return None
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return float(time) if isinstance(time, int | float) else None
