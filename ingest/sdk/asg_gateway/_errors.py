"""The errors of the SDK.

::

    ASGGatewayError
    |-- TransportError          no answer: the connection was refused or lost
    |   |-- TimedOutError         no answer in time
    |   `-- BrokerUnavailableError  RabbitMQ did not answer, or did not confirm
    |-- BrokerRefusedError      RabbitMQ refuses the login, or a permission, or something does not exist
    |-- InvalidEventError       a message is not an event of the gateway (AMQP only)
    |-- InvalidTaskError        the SDK has found errors in a task that would certainly be rejected (AMQP only)
    |-- APIError                an answer that is not 2xx, or not from the gateway
    |   |-- InvalidRequestError   400, 405, 413, 415, 422: change the request
    |   |-- AuthenticationError   401: the API key
    |   |-- QuotaExhaustedError   403
    |   |-- CustomerDisabledError 403, if the operator has disabled the customer
    |   |-- NotFoundError         404
    |   |-- ConflictError         409: another request with the same key is in progress
    |   |-- RateLimitedError      429
    |   `-- ServerError           5xx
    `-- PartialBatchError       some parts of a split batch were accepted, then one failed
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from asg_gateway._results import BatchResult

_INDEX = re.compile(r"\Atasks\[([0-9]+)\]")


class ASGGatewayError(Exception):
    """The base of all errors of this package.

    Attributes:
        idempotency_key: the key of the submission that failed, given or generated. If the call is repeated with it,
            nothing is submitted twice. None for a look-up.
    """

    idempotency_key: str | None = None


class TransportError(ASGGatewayError):
    """There was no answer after all retries. It is unknown whether the gateway got the request.

    `__cause__` is the error of httpx.
    """


class TimedOutError(TransportError):
    """There was no answer in time."""


class BrokerUnavailableError(TransportError):
    """RabbitMQ did not answer, or did not confirm, before the deadline. It is unknown whether it got the submission.

    `__cause__` is the error of aio-pika.
    """


class BrokerRefusedError(ASGGatewayError):
    """RabbitMQ refuses the login, the virtual host or a permission, or an exchange or queue does not exist.

    A retry does not help before the configuration is corrected. `__cause__` is the error of aio-pika.
    """


class InvalidEventError(ASGGatewayError):
    """A message is not an event of the gateway: not CloudEvents 1.0 in JSON, or a field is missing or wrong."""


class InvalidTaskError(ASGGatewayError):
    """A task would certainly be rejected; nothing was published.

    Attributes:
        errors: (field, sentence) of each error; `tasks[3].data_url` is a field of the fourth task of a batch.
    """

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        super().__init__(tuple(errors))
        self.errors = tuple(errors)

    def __str__(self) -> str:
        more = f" (and {len(self.errors) - 1} more errors)" if len(self.errors) > 1 else ""
        return f"{self.errors[0][1]}{more}"


class APIError(ASGGatewayError):
    """The gateway refused the request.

    Attributes:
        status: the HTTP status.
        message: the gateway's sentence about the problem. An index in it is one of the caller's list of tasks.
        errors: (field, sentence) of each invalid field, if there are several; indexes as in `message`.
        request_id: names the request in the gateway's log; None if the answer has none.
        headers: the headers of the answer, names in lower case.
    """

    def __init__(
        self,
        status: int,
        message: str,
        errors: tuple[tuple[str, str], ...] = (),
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # All arguments, because pickle calls the class with them.
        super().__init__(status, message, errors, request_id, headers)
        self.status = status
        self.message = message
        self.errors = errors
        self.request_id = request_id
        self.headers = headers or {}

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


class InvalidRequestError(APIError):
    """The request is invalid; a retry does not help."""


class AuthenticationError(APIError):
    """The API key is missing, unknown or revoked."""


class QuotaExhaustedError(APIError):
    """The monthly quota is exhausted."""


class CustomerDisabledError(APIError):
    """The operator has disabled the customer: every request is refused until it is enabled."""


class NotFoundError(APIError):
    """Nothing has this id, or it is no longer remembered."""


class ConflictError(APIError):
    """Another request with the same idempotency key is still in progress."""


class RateLimitedError(APIError):
    """Too many submissions: the rate limit of the customer, and the retries or the time of the call have ended.

    If it was not sent at all, because its turn would come after its deadline, `headers` is empty.
    """


class ServerError(APIError):
    """The gateway cannot serve the request now."""


class PartialBatchError(ASGGatewayError):
    """A batch was split, and not all parts were accepted. `__cause__` is the error that stopped it.

    To resume, submit the same tasks again with `idempotency_key`: parts that were accepted are answered as replays.

    Attributes:
        accepted: the results of the accepted parts, in order.
        idempotency_key: the key for repeating the call.
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
def indexes_from(first: int) -> Iterator[None]:
    """Add `first` to the indexes of tasks in the texts of an APIError, so that they are those of the whole list."""
    try:
        yield
    except APIError as error:
        if not first:
            raise
        errors = tuple((_shifted(field, first), _shifted(sentence, first)) for field, sentence in error.errors)
        message = _shifted(error.message, first)
        raise type(error)(error.status, message, errors, error.request_id, error.headers) from error


def _shifted(text: str, first: int) -> str:
    return _INDEX.sub(lambda match: f"tasks[{int(match[1]) + first}]", text)


@contextmanager
def resumable(key: str, accepted: Sequence[BatchResult] = ()) -> Iterator[None]:
    """Add to an error the key of the submission, and the parts of it that were accepted before."""
    try:
        yield
    except ASGGatewayError as error:
        if accepted:
            raise PartialBatchError(tuple(accepted), key) from error
        error.idempotency_key = key
        raise


DISABLED = "the customer is disabled"
"""The gateway's sentence. Only it tells this 403 from an exhausted quota."""
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
