"""Everything the SDK raises on purpose.

::

    ASGGatewayError
    |-- TransportError          no answer: connection refused, broken, timed out
    |-- APIError                an answer that is not 2xx
    |   |-- InvalidRequestError   400, 405, 413, 415, 422: change the request
    |   |-- AuthenticationError   401: the API key
    |   |-- QuotaExhaustedError   403
    |   |-- NotFoundError         404
    |   |-- ConflictError         409: the same key is being submitted at this moment
    |   |-- RateLimitedError      429
    |   `-- ServerError           5xx
    `-- PartialBatchError       some parts of a split batch were accepted, then one failed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asg_gateway._results import BatchResult


class ASGGatewayError(Exception):
    """The root of all errors of this package."""


class TransportError(ASGGatewayError):
    """No answer, after all retries. `__cause__` is httpx's error."""


class APIError(ASGGatewayError):
    """The gateway refused the request.

    Attributes:
        status: the HTTP status.
        message: what is wrong, as the gateway says it.
        errors: (field, sentence) of each field that is wrong, where there are several.
        request_id: names the request in the gateway's log; None where it did not tell.
    """

    def __init__(
        self, status: int, message: str, errors: tuple[tuple[str, str], ...] = (), request_id: str | None = None
    ) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.errors = errors
        self.request_id = request_id


class InvalidRequestError(APIError):
    """The request itself is wrong; repeating it does not help."""


class AuthenticationError(APIError):
    """The API key is missing, unknown or revoked."""


class QuotaExhaustedError(APIError):
    """The month's quota is used up."""


class NotFoundError(APIError):
    """There is nothing with this id, or it is no longer remembered."""


class ConflictError(APIError):
    """Another request with the same idempotency key is still in progress."""


class RateLimitedError(APIError):
    """Too many requests."""


class ServerError(APIError):
    """The gateway cannot answer for now."""


class PartialBatchError(ASGGatewayError):
    """A batch was split and not all parts were accepted. `__cause__` is what stopped it.

    Submitting the same tasks again with `idempotency_key` resumes: parts accepted before are answered as replays.

    Attributes:
        accepted: results of the parts that were accepted, in order.
        idempotency_key: the key to repeat the call with.
    """

    def __init__(self, accepted: tuple[BatchResult, ...], idempotency_key: str) -> None:
        count = sum(part.task_count for part in accepted)
        super().__init__(
            f"the first {count} tasks were accepted, then a part failed; "
            f"repeat the call with idempotency_key={idempotency_key!r} to resume"
        )
        self.accepted = accepted
        self.idempotency_key = idempotency_key


BY_STATUS: dict[int, type[APIError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: QuotaExhaustedError,
    404: NotFoundError,
    405: InvalidRequestError,
    409: ConflictError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitedError,
}
