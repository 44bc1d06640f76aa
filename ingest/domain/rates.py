"""Rate limits: how many submissions a customer may make over HTTP in a window of time.

Windows are fixed: those of a second or a minute of Unix time, numbered from 1970. The store counts the permits that the
processes have taken for a window of a customer. A permit is the right of one submission; it ends with its window.
"""

from typing import Final

import msgspec

UNITS: Final = {"s": 1, "m": 60}
"""Lengths of windows in seconds, as a limit is written: 50/s, 600/m."""
_NAMES: Final = {1: "second", 60: "minute"}
_SKEW: Final = 60
"""Seconds by which the clocks of two processes may differ and still share a window's counter."""
_CHUNKS: Final = 20


class RateLimit(msgspec.Struct, frozen=True):
    """At most `limit` submissions in each window of `seconds`, which is a value of UNITS."""

    limit: int
    seconds: int

    def __str__(self) -> str:
        unit = next((unit for unit, seconds in UNITS.items() if seconds == self.seconds), f"{self.seconds}s")
        return f"{self.limit}/{unit}"

    @property
    def words(self) -> str:
        """The limit as part of a sentence."""
        plural = "" if self.limit == 1 else "s"
        return f"{self.limit} submission{plural} per {_NAMES.get(self.seconds, f'{self.seconds} s')}"

    @property
    def chunk(self) -> int:
        """How many permits a process takes at once: a twentieth of the limit, at least one."""
        return max(1, self.limit // _CHUNKS)


class PermitClaim(msgspec.Struct, frozen=True):
    """A claim of `count` permits for window `number` of a customer; `seconds` is the window's length."""

    cust_id: str
    seconds: int
    number: int
    count: int

    @property
    def time_to_live(self) -> int:
        """Seconds for which the store keeps the counter after each claim."""
        return 2 * self.seconds + _SKEW


def granted(limit: int, claimed: int, count: int) -> int:
    """Return how many of `count` permits a claim was granted, if `claimed` permits are claimed with them."""
    return max(0, min(count, limit - (claimed - count)))
