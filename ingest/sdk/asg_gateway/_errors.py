"""Everything the SDK raises on purpose.

::

    ASGGatewayError
    |-- TransportError          no answer: connection refused or broken
    |   `-- TimedOutError         none in time
    |-- APIError                an answer that is not 2xx, or not the gateway's
    |   |-- InvalidRequestError   400, 405, 413, 415, 422: change the request
    |   |-- AuthenticationError   401: the API key
    |   |-- QuotaExhaustedError   403
    |   |-- NotFoundError         404
    |   |-- ConflictError         409: the same key is being submitted at this moment
    |   |-- RateLimitedError      429
    |   `-- ServerError           5xx
    `-- PartialBatchError       some parts of a split batch were accepted, then one failed
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from asg_gateway._results import BatchResult


class ASGGatewayError(Exception):
    """The root of all errors of this package.

    Attributes:
        idempotency_key: of the submission that failed, given or generated: the call repeated with it submits nothing
            twice. None for a look-up.
    """

    idempotency_key: str | None = None


class TransportError(ASGGatewayError):
    """No answer, after all retries; whether the gateway got the request is not known. `__cause__` is httpx's error."""


class TimedOutError(TransportError):
    """No answer in time."""


class APIError(ASGGatewayError):
    """The gateway refused the request.

    Attributes:
        status: the HTTP status.
        message: what is wrong, as the gateway says it.
        errors: (field, sentence) of each field that is wrong, where there are several.
        request_id: names the request in the gateway's log; None where it did not tell.
        headers: of the answer, names in lower case.
    """

    def __init__(
        self,
        status: int,
        message: str,
        errors: tuple[tuple[str, str], ...] = (),
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, errors, request_id, headers)  # all of it: errors cross processes by args
        self.status = status
        self.message = message
        self.errors = errors
        self.request_id = request_id
        self.headers = headers or {}

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


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
        super().__init__(accepted, idempotency_key)
        self.accepted = accepted
        self.idempotency_key = idempotency_key

    def __str__(self) -> str:
        count = sum(part.task_count for part in self.accepted)
        return (
            f"the first {count} tasks were accepted, then a part failed ({self.__cause__}); "
            f"repeat the call with idempotency_key={self.idempotency_key!r} to resume"
        )


@contextmanager
def resumable(key: str, accepted: Sequence[BatchResult] = ()) -> Iterator[None]:
    """Errors of the submission inside tell its key, and which parts of it were accepted before."""
    try:
        yield
    except ASGGatewayError as error:
        if accepted:
            raise PartialBatchError(tuple(accepted), key) from error
        error.idempotency_key = key
        raise


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
