"""Why a run stops early: an exit code and a sentence that says how to continue."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from asg_gateway._bulk.options import UsageError
from asg_gateway._bulk.sources import SourceError
from asg_gateway._bulk.streams import RunError
from asg_gateway._errors import (
    APIError,
    ASGGatewayError,
    BrokerRefusedError,
    ConflictError,
    QuotaExhaustedError,
    RateLimitedError,
    ServerError,
    TransportError,
)

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
QUOTA: Final = 4
FAILED: Final = 5
INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Stop:
    """The end of a run before the end of its file."""

    code: int
    sentence: str


def stop_of(error: Exception, source: str, base_url: str, now: Callable[[], datetime]) -> Stop:
    """Return the exit code and the sentence for an error.

    Args:
        error: any error.
        source: the name of the file.
        base_url: the URL of the gateway.
        now: the time in UTC.
    """
    match error:
        case UsageError():
            return Stop(USAGE, str(error))
        case SourceError():
            return Stop(USAGE, f"{source}: {error}")
        case QuotaExhaustedError():
            return Stop(QUOTA, f"{_answer(error, base_url)}. {_next_quota(now())}")
        case BrokerRefusedError():
            return Stop(USAGE, str(error))
        case TransportError():
            return Stop(UNAVAILABLE, str(error))
        case ServerError() | RateLimitedError() | ConflictError():
            return Stop(UNAVAILABLE, _answer(error, base_url))
        case APIError():
            return Stop(USAGE, _answer(error, base_url))
        case RunError() | ASGGatewayError():
            return Stop(FAILED, str(error))
        case OSError():
            return Stop(FAILED, f"{error.filename or source}: {error.strerror or error}")
    return Stop(FAILED, f"unexpected error, please report it: {type(error).__name__}: {error}")


def _answer(error: APIError, base_url: str) -> str:
    return f"the gateway at {base_url} answers {error}"


def _next_quota(now: datetime) -> str:
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    starts = f"the next one starts on {year}-{month:02}-01 at 00:00 UTC"
    return f"The quota is monthly: {starts}. A smaller --chunk uses what may remain of this one"
