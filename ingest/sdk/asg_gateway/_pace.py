"""Paces the submissions of a client once the gateway limits their rate.

After a 429, no attempt of the client starts before `Retry-After`. The following ones start one after another at the
rate that `RateLimit-Policy` says (draft-ietf-httpapi-ratelimit-headers), until there was none for a whole window.
"""

import math
import random
import re
import time
from collections.abc import Callable

_POLICY = re.compile(r'\A"default";q=([1-9][0-9]{0,8});w=([1-9][0-9]{0,2})\Z')
"""The limit and the seconds of its window, as the gateway says them."""
_LONGEST_PAUSE = 60.0
"""Seconds, also if a proxy asks for more: then the gateway is asked again. The call that was refused obeys."""
_MARGIN = 1.05
"""The windows of the gateway are fixed, so that attempts at exactly its rate would sometimes be one too many."""


class Pace:
    """When attempts may start; shared by the calls of one client. `clock` is in monotonic seconds.

    Threads need no lock: if two reserve at the same time, both attempts start together.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.refusals = 0
        self._clock = clock
        self._next = -math.inf
        self._interval = 0.0
        self._window = 0.0

    def reserve(self) -> float:
        """Reserve the next start; return the seconds until then, 0 if the attempt may start now."""
        now = self._clock()
        if now > self._next + self._window:
            self._interval = 0.0
        start = max(now, self._next)
        if self._interval:
            self._next = start + self._interval
        return start - now

    def refused(self, retry_after: float, policy: str) -> None:
        """Record a 429. `retry_after` is in seconds; `policy` is the field `RateLimit-Policy`, or ""."""
        self._follow(policy)
        # Jitter, so that clients that were refused together do not retry together.
        pause = min(retry_after, _LONGEST_PAUSE) * random.uniform(1.0, 1.25)  # noqa: S311
        self._next = max(self._next, self._clock() + pause)
        self.refusals += 1

    def accepted(self, policy: str) -> None:
        """Record another answer: the limit may have been changed or removed since the last 429."""
        if self._interval:
            self._follow(policy)

    def _follow(self, policy: str) -> None:
        match = _POLICY.match(policy)
        limit, self._window = (int(match[1]), float(match[2])) if match else (1, 0.0)
        self._interval = _MARGIN * self._window / limit
