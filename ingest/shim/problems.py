"""Every error that an HTTP client can meet. The body is `{"error": sentence}`, with `errors` where fields are wrong."""

from functools import partial
from typing import Final

import msgspec

from ingest.domain.errors import FieldError, InvalidSubmission, Reason
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
        """`errors` only where it says more than `error`."""
        if len(self.errors) > 1:
            return _encode({"error": self.message, "errors": self.errors})
        return _encode({"error": self.message})


_CLOSE: Final[Header] = (b"connection", b"close")
_RETRY: Final[Header] = (b"retry-after", b"1")

# Made anew each time: an exception that is raised again and again keeps every traceback.

no_key = partial(
    Problem,
    401,
    "Authorization: Bearer <api_key> is required",
    ((b"www-authenticate", b'Bearer realm="asg"'),),
    reason="unauthorized",
)
bad_key = partial(
    Problem,
    401,
    "the API key is unknown or revoked",
    ((b"www-authenticate", b'Bearer realm="asg", error="invalid_token"'),),
    reason="unauthorized",
)
quota_exhausted = partial(Problem, 403, "quota exhausted", reason=Reason.QUOTA_EXHAUSTED)
busy = partial(
    Problem, 409, "a submission with this idempotency key is in progress, repeat the request in a moment", (_RETRY,)
)
too_large = partial(
    Problem, 413, f"body is too large, at most {MAX_BODY} bytes are allowed", (_CLOSE,), reason=Reason.TOO_LARGE
)
not_json_type = partial(
    Problem,
    415,
    "Content-Type must be application/json (UTF-8, without Content-Encoding)",
    reason=Reason.UNSUPPORTED_CONTENT_TYPE,
)
conflict = partial(Problem, 422, "this idempotency key was used with another body", reason=Reason.KEY_CONFLICT)
internal = partial(Problem, 500, "internal error", reason="internal")
store_away = partial(
    Problem, 503, "the task store cannot be reached, repeat the request later", (_RETRY,), reason="store"
)
broker_away = partial(
    Problem, 503, "the task queue cannot be reached, repeat the request later", (_RETRY,), reason="broker"
)
overloaded = partial(
    Problem, 503, "too many requests are waiting, repeat the request later", (_RETRY,), reason="overloaded"
)
too_full = partial(
    Problem, 503, "too much is under way, repeat the request later", (_RETRY, _CLOSE), reason="overloaded"
)
too_slow = partial(
    Problem, 503, "the request took too long, repeat it with the same idempotency key", (_RETRY,), reason="deadline"
)


def not_allowed(method: str) -> Problem:
    """405 where only POST is."""
    return Problem(405, f"{method} is not allowed here", ((b"allow", b"POST"),), reason="method_not_allowed")


def repeated(name: str) -> Problem:
    """400 for a header that must stand once."""
    return Problem(400, f"the header {name} was sent more than once, send it once", reason=Reason.INVALID)


def invalid(error: InvalidSubmission) -> Problem:
    """400 for a submission that is wrong; 413 where it is only too large."""
    if error.reason is Reason.TOO_LARGE:
        return too_large()
    return Problem(400, error.message, (), error.errors, error.reason)
