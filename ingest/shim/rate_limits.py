"""Enforces the rate limits of customers, over all shim processes together.

Every answer to a customer with a limit has the fields `RateLimit-Policy` and `RateLimit`, as in
draft-ietf-httpapi-ratelimit-headers-11 (May 2026): lists of one item, the policy `"default"`. Its parameters are the
limit `q` and the window `w` in seconds; the permits that remain, `r`, and the seconds until the window ends, `t`.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Undecided
from ingest.domain.ports import Rates
from ingest.domain.rates import PermitClaim, RateLimit, granted
from ingest.shim import problems
from ingest.shim.problems import Header

MAX_WINDOWS: Final = 50_000
"""Customers whose windows a process knows. If it forgets one too early, the permits that it held are lost."""
PATIENCE: Final = 1.0
"""Seconds that a submission waits for permits. Afterwards, or if the store cannot decide, it is not limited: an outage
is no reason for 429. Then the submissions of the customer are not limited for `UNLIMITED` seconds."""
UNLIMITED: Final = 1.0

_log = structlog.get_logger(__name__)


class _Window:
    """What this process knows of a window of a customer.

    `left` are the permits that it has and `claimed` those that all processes have claimed, as far as it knows.
    `waiting` are submissions that wait for the answer to a claim: True is a permit, False none, None undecided.
    """

    __slots__ = (
        "claimed",
        "cust_id",
        "is_claiming",
        "left",
        "number",
        "policy",
        "rate",
        "unlimited_until",
        "waiting",
    )

    def __init__(self, cust_id: str, rate: RateLimit, number: int) -> None:
        self.cust_id = cust_id
        self.rate = rate
        self.number = number
        self.policy = b'"default";q=%d;w=%d' % (rate.limit, rate.seconds)
        self.left = 0
        self.claimed = 0
        self.waiting: list[asyncio.Future[bool | None]] = []
        self.is_claiming = False
        self.unlimited_until = -math.inf

    @property
    def end(self) -> int:
        """When the window ends, in Unix seconds."""
        return (self.number + 1) * self.rate.seconds

    @property
    def next_claim(self) -> int:
        """How many permits to claim: enough for all that wait, and at least a chunk."""
        return max(self.rate.chunk, sum(not submission.done() for submission in self.waiting))

    def record(self, count: int, claimed: int | Undecided) -> None:
        """Record the answer to a claim of `count` permits, and give those that wait their permits, in order.

        They wait on if there were not enough, but the window is not exhausted.
        """
        if not isinstance(claimed, Undecided):
            self.claimed = max(self.claimed, claimed)
            self.left += granted(self.rate.limit, claimed, count)
        submissions, self.waiting = self.waiting, []
        for submission in submissions:
            if submission.done():
                continue  # it has waited too long, or was cancelled
            if isinstance(claimed, Undecided):
                submission.set_result(None)
            elif self.left:
                submission.set_result(True)
                self.left -= 1
            elif self.claimed >= self.rate.limit:
                submission.set_result(False)
            else:
                self.waiting.append(submission)

    def remaining(self) -> int:
        """Return how many permits are left in all. Those that other processes hold, or claimed since, do not count."""
        return max(0, self.rate.limit - self.claimed) + self.left


class RateLimiter:
    """Takes permits from the store, in chunks.

    A submission that finds no permit waits for the next claim, which all submissions of the process share: one claim
    is in progress at a time, for all customers that wait. A process whose clock differs counts in another window, so
    each window is exact, and two clocks can let a customer submit twice the limit within one window's time.

    Args:
        rates: counts the permits.
        wall_clock: Unix seconds; it decides which window is the current one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        rates: Rates,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates = rates
        self._wall_clock = wall_clock
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._waiting: list[_Window] = []
        self._claiming: asyncio.Task[None] | None = None

    async def take(self, cust_id: str, rate: RateLimit) -> tuple[Header, Header]:
        """Take a permit for a submission; return the fields for its answer.

        Raises:
            Problem: 429 if the customer has none left in this window.
        """
        now = self._wall_clock()
        number = int(now // rate.seconds)
        window = self._windows.get(cust_id)
        if window is None or window.number != number or window.rate != rate:
            window = self._open(_Window(cust_id, rate, number), now)
        permit: bool | None = True
        if window.left:
            window.left -= 1
        elif window.claimed < rate.limit:
            permit = await self._claim(window)
        else:
            permit = False
        seconds = max(1, math.ceil(window.end - now))
        if permit is False:
            raise problems.rate_limited(rate, seconds, _fields(window, seconds))
        return _fields(window, seconds)

    @property
    def windows(self) -> int:
        """How many windows the process knows."""
        return len(self._windows)

    def _open(self, window: _Window, now: float) -> _Window:
        """Add a window of a customer; forget up to two that have ended, so that they cannot accumulate."""
        self._windows[window.cust_id] = window
        self._windows.move_to_end(window.cust_id)
        for _ in range(2):
            oldest = next(iter(self._windows.values()))
            if oldest.end > now and len(self._windows) <= MAX_WINDOWS:
                break
            self._windows.popitem(last=False)
        return window

    async def _claim(self, window: _Window) -> bool | None:
        """Return whether the next claim for the window grants a permit; None if that is undecided or takes long."""
        if self._clock() < window.unlimited_until:
            return None
        if not window.is_claiming:
            window.is_claiming = True
            self._waiting.append(window)
            if self._claiming is None or self._claiming.done():
                self._claiming = asyncio.create_task(self._claim_for_waiting())
        submission: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        window.waiting.append(submission)
        permit = None
        try:
            async with asyncio.timeout(PATIENCE):
                permit = await submission
        except TimeoutError:
            pass
        if permit is None:
            window.unlimited_until = self._clock() + UNLIMITED
        return permit

    async def _claim_for_waiting(self) -> None:
        while self._waiting:
            windows, self._waiting = self._waiting, []
            claims = [
                PermitClaim(window.cust_id, window.rate.seconds, window.number, window.next_claim) for window in windows
            ]
            sums: Sequence[int | Undecided] = [UNDECIDED] * len(claims)
            try:
                sums = await self._sums(claims)
            finally:
                for window, claim, claimed in zip(windows, claims, sums, strict=True):
                    window.record(claim.count, claimed)
                    window.is_claiming = bool(window.waiting)
                    if window.is_claiming:
                        self._waiting.append(window)

    async def _sums(self, claims: Sequence[PermitClaim]) -> Sequence[int | Undecided]:
        cause = None
        try:
            sums = await self._rates.claim_permits(claims)
        except StoreUnavailable as error:
            sums, cause = [UNDECIDED] * len(claims), str(error)
        if undecided := sum(claimed is UNDECIDED for claimed in sums):
            consequence = "their rates are not limited for a moment"
            _log.warning("permits_undecided", customers=undecided, error=cause, consequence=consequence)
        return sums


def _fields(window: _Window, seconds: int) -> tuple[Header, Header]:
    return (
        (b"ratelimit-policy", window.policy),
        (b"ratelimit", b'"default";r=%d;t=%d' % (window.remaining(), seconds)),
    )
