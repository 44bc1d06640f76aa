"""Decides when to retry and when to give up."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from asg_gateway._backoff import Backoff
from asg_gateway._errors import ASGGatewayError, RateLimitedError, TimedOutError, TransportError
from asg_gateway._pace import Pace
from asg_gateway._protocol import api_error, http_date

TIMEOUT = 30.0
MAX_RETRIES = 5
DEADLINE = 120.0

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 8.0
_SHORTEST_TIMEOUT = 0.001
_NO_TURN = "not sent: the gateway limits the rate of this client, and the deadline would pass before its turn"


@dataclass(frozen=True)
class Limits:
    """The limits of one request; `timeout` and `deadline` are in seconds. Raises ValueError for an invalid value."""

    timeout: float
    max_retries: int
    deadline: float

    def __post_init__(self) -> None:
        if not self.timeout > 0 or not self.deadline > 0:
            raise ValueError("timeout and deadline must be greater than 0 seconds")
        if self.max_retries < 0:
            raise ValueError("max_retries must be 0 or more")


class Attempts:
    """Decides after each attempt at one request:

    done, retry after a pause, or an error.

    Args:
        limits: the limits of the request.
        base_url: for messages.
        clock: monotonic seconds.
        pace: the pace of the client; by default the request has its own.
    """

    def __init__(
        self,
        limits: Limits,
        base_url: str,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace | None = None,
    ) -> None:
        self.end = clock() + limits.deadline
        self._limits = limits
        self._base_url = base_url.rstrip("/")
        self._retries_left = limits.max_retries
        self._clock = clock
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._pace = pace or Pace(clock)
        self._error: ASGGatewayError | None = None

    def waits(self, pause: float = 0.0) -> Iterator[float]:
        """Yield the seconds to wait, one after another, before the next attempt.

        They are `pause`, or more if the client has been refused because of its rate, also during the wait. Raises the
        last error if the deadline would pass.
        """
        pause = max(pause, self._pace.reserve())
        while pause > 0:
            if self._clock() + pause >= self.end:
                raise self._error or RateLimitedError(429, _NO_TURN)
            refusals = self._pace.refusals
            yield pause
            pause = self._pace.reserve() if self._pace.refusals != refusals else 0.0

    def remaining(self) -> float:
        """Return the seconds until the deadline, more than 0."""
        return max(self.end - self._clock(), _SHORTEST_TIMEOUT)

    def timeout(self) -> httpx.Timeout:
        """Return the timeouts of the next attempt: at most the remaining time. The SDK limits connections itself."""
        return httpx.Timeout(min(self._limits.timeout, self.remaining()), pool=None)

    def answered(self, response: httpx.Response) -> float | None:
        """Return None if the answer is final, otherwise the seconds until the retry. Raises APIError to give up."""
        policy = response.headers.get("RateLimit-Policy", "")
        if response.status_code == 429:
            self._pace.refused(_retry_after(response), policy)
        else:
            self._pace.accepted(policy)
        if response.is_success:
            return None
        error = api_error(response)
        if not _is_temporary(response.status_code):
            raise error
        return self._pause_before_retry(error, _retry_after(response))

    def failed(self, cause: httpx.RequestError | TimeoutError) -> float:
        """Return the seconds until the retry. Raises TransportError to give up.

        A TimeoutError means that the deadline has passed.
        """
        error: TransportError
        if isinstance(cause, TimeoutError) or self._clock() >= self.end:
            within = f"within the deadline of {self._limits.deadline:g} s"
            error = TimedOutError(f"no complete answer from {self._base_url} {within}")
        else:
            kind = TimedOutError if isinstance(cause, httpx.TimeoutException) else TransportError
            error = kind(f"no answer from {self._base_url}: {str(cause) or type(cause).__name__}")
        error.__cause__ = cause
        return self._pause_before_retry(error, 0.0)

    def _pause_before_retry(self, error: ASGGatewayError, requested: float) -> float:
        pause = self._pauses.next()
        # Jitter here too, so that clients that were refused together do not retry together.
        pause = max(pause, requested * random.uniform(1.0, 1.25))  # noqa: S311
        if not self._retries_left or self._clock() + pause >= self.end:
            raise error
        self._retries_left -= 1
        self._error = error
        return pause


def _is_temporary(status: int) -> bool:
    """Return whether a retry can help. 409: a request with the same key is in progress. 501 and 505 are permanent."""
    return status in (408, 409, 429) or (status >= 500 and status not in (501, 505))


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds in `Retry-After`, a number or a date (RFC 9110, section 10.2.3); 0 without it."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    date = http_date(value)
    return max(0.0, date.timestamp() - time.time()) if date else 0.0
