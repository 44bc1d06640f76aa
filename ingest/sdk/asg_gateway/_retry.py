"""Decides when to retry and when to give up."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from asg_gateway._errors import ASGGatewayError, TimedOutError, TransportError
from asg_gateway._protocol import api_error, http_date

TIMEOUT = 30.0
MAX_RETRIES = 5
DEADLINE = 120.0

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 8.0
_SHORTEST_TIMEOUT = 0.1
"""Seconds for an attempt that starts just before the deadline."""


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

    done, retry after a pause, or an error. `clock` is in monotonic seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout = limits.timeout
        self._retries_left = limits.max_retries
        self._clock = clock
        self._end = clock() + limits.deadline
        self._pause = _FIRST_PAUSE

    def timeout(self) -> float:
        """Return the timeout of the next attempt in seconds, at most the remaining time."""
        return min(self._timeout, max(self._end - self._clock(), _SHORTEST_TIMEOUT))

    def answered(self, response: httpx.Response) -> float | None:
        """Return None if the answer is final, otherwise the seconds until the retry. Raises APIError to give up."""
        if response.is_success:
            return None
        error = api_error(response)
        if not _is_temporary(response.status_code):
            raise error
        return self._pause_before_retry(error, _retry_after(response))

    def failed(self, cause: httpx.RequestError) -> float:
        """Return the seconds until the retry. Raises TransportError to give up."""
        kind = TimedOutError if isinstance(cause, httpx.TimeoutException) else TransportError
        error = kind(f"no answer from the gateway: {str(cause) or type(cause).__name__}")
        error.__cause__ = cause
        return self._pause_before_retry(error, 0.0)

    def _pause_before_retry(self, error: ASGGatewayError, requested: float) -> float:
        pause = self._pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
        # Jitter here too, so that clients that were refused together do not retry together.
        pause = max(pause, requested * random.uniform(1.0, 1.25))  # noqa: S311
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if not self._retries_left or self._clock() + pause >= self._end:
            raise error
        self._retries_left -= 1
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
