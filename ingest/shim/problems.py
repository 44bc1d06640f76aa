"""Answers that are not 2xx, except 404 (`app`, `lookups`) and what HTTP itself forbids, such as 408, 431, 505 (`http`).

The body is `{"error": sentence}`, plus `errors` if several fields are wrong.
"""

from functools import partial
from typing import Final

import msgspec

from ingest.domain.errors import FieldError, InvalidSubmission, Reason
from ingest.domain.rates import RateLimit
from ingest.domain.submissions import MAX_BODY

Header = tuple[bytes, bytes]

_encode = msgspec.json.encode


class Problem(Exception):
    """An answer that is not 2xx. `reason` is its code in the metrics."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: tuple[Header, ...] = (),
        errors: tuple[FieldError, ...] = (),
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.errors = errors
        self.reason = reason

    def body(self) -> bytes:
        """Return the JSON body. `errors` is included only if it says more than `error`."""
        if len(self.errors) > 1:
            return _encode({"error": self.message, "errors": self.errors})
        return _encode({"error": self.message})


_CLOSE: Final[Header] = (b"connection", b"close")
_RETRY: Final[Header] = (b"retry-after", b"1")

# Functions, not instances: an exception that is raised again and again keeps every traceback.

missing_key = partial(
    Problem,
    401,
    "Authorization: Bearer <api_key> is required",
    ((b"www-authenticate", b'Bearer realm="asg"'),),
    reason="unauthorized",
)
unknown_key = partial(
    Problem,
    401,
    "the API key is unknown or revoked",
    ((b"www-authenticate", b'Bearer realm="asg", error="invalid_token"'),),
    reason="unauthorized",
)
quota_exhausted = partial(Problem, 403, "quota exhausted", reason=Reason.QUOTA_EXHAUSTED)
customer_disabled = partial(Problem, 403, "the customer is disabled", reason=Reason.CUSTOMER_DISABLED)
contended = partial(
    Problem, 409, "another request with this idempotency key is in progress, retry in a moment", (_RETRY,)
)
too_large = partial(
    Problem, 413, f"body is too large, at most {MAX_BODY} bytes are allowed", (_CLOSE,), reason=Reason.TOO_LARGE
)
key_conflict = partial(Problem, 422, "this idempotency key was used with another body", reason=Reason.KEY_CONFLICT)
internal = partial(Problem, 500, "internal error", reason="internal")
store_unavailable = partial(Problem, 503, "the task store is unavailable, retry later", (_RETRY,), reason="store")
broker_unavailable = partial(Problem, 503, "the task queue is unavailable, retry later", (_RETRY,), reason="broker")
overloaded = partial(Problem, 503, "too many requests are waiting, retry later", (_RETRY,), reason="overloaded")
at_capacity = partial(Problem, 503, "server is at capacity, retry later", (_RETRY, _CLOSE), reason="overloaded")
parser_failed = partial(
    Problem, 503, "the body could not be processed; retry later, or send less in one body", (_RETRY,), reason="parser"
)
deadline_exceeded = partial(
    Problem, 503, "the request took too long, retry it with the same idempotency key", (_RETRY,), reason="deadline"
)


def method_not_allowed(method: str) -> Problem:
    """405 on a path that takes only POST."""
    return Problem(405, f"{method} is not allowed here", ((b"allow", b"POST"),), reason="method_not_allowed")


def rate_limited(rate: RateLimit, seconds: int, fields: tuple[Header, ...]) -> Problem:
    """429 for a customer without permits. `seconds`: until the window ends; `fields`: `RateLimit` and its policy."""
    message = f"rate limit exceeded: at most {rate.words} (a batch is one), retry in {seconds} s"
    return Problem(429, message, ((b"retry-after", b"%d" % seconds), *fields), reason="rate_limited")


def unsupported_content(message: str) -> Problem:
    """415 for a body that is not JSON in UTF-8, or compressed."""
    return Problem(415, message, reason=Reason.UNSUPPORTED_CONTENT_TYPE)


def repeated_header(name: str) -> Problem:
    """400 for a header that may be sent only once."""
    return Problem(400, f"the header {name} was sent more than once, send it once", reason=Reason.INVALID)


def invalid(error: InvalidSubmission) -> Problem:
    """413 for a submission that is too large, 400 for every other invalid one."""
    return Problem(413 if error.reason is Reason.TOO_LARGE else 400, error.message, (), error.errors, error.reason)
