"""The errors of the service. The shim turns them into HTTP statuses, the worker into reason codes.

::

    IngestError
    |-- InvalidSubmission      the submission is wrong: 400, or a dead letter with `reason`
    |   `-- UnregisteredWebhook
    |-- ParserFailed           the body may have killed its parser: 503, or a failed attempt of the worker
    |-- Unavailable            a dependency is unavailable: 503, or the worker waits; never a dead letter
    |   |-- StoreUnavailable
    |   `-- BrokerUnavailable
    `-- ConfigurationError     settings, topology or permissions are wrong: the process says what to change and stops
"""

from enum import StrEnum

import msgspec

MAX_FIELD_ERRORS = 100


class Reason(StrEnum):
    """Why a submission was rejected: the code in `ingest.dead`, and the `reason` of `submission.rejected`."""

    MALFORMED = "malformed"
    """Not JSON, not UTF-8, or not an object."""
    INVALID = "invalid"
    """JSON, but a field is missing or wrong."""
    TOO_LARGE = "too_large"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"
    BAD_PROPERTY = "bad_property"
    """An AMQP property that gives its producer an advantage over others."""
    BAD_ROUTING_KEY = "bad_routing_key"
    MISSING_MESSAGE_ID = "missing_message_id"
    UNKNOWN_CUSTOMER = "unknown_customer"
    CUSTOMER_DISABLED = "customer_disabled"
    """An operator has disabled the customer. Replays are rejected, too."""
    USER_MISMATCH = "user_mismatch"
    """The broker-checked `user_id` is neither the customer nor the service."""
    FORGED_ADMISSION = "forged_admission"
    """Claims to be admitted already, but does not come from the shim."""
    KEY_CONFLICT = "key_conflict"
    """Same key, other body, and the customer is `strict`."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    DELIVERY_LIMIT = "delivery_limit"
    """It was delivered too often without being finished, probably because it crashes the workers."""


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with one field; `error` is a sentence that starts with the field's path."""

    field: str
    error: str


class IngestError(Exception):
    """The base of every error that this package raises on purpose."""


class InvalidSubmission(IngestError):
    """A submission that cannot be accepted as it is.

    `errors` holds at most `MAX_FIELD_ERRORS` field errors, in the order of the body; it may be empty.
    """

    def __init__(self, reason: Reason, message: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.errors = errors[:MAX_FIELD_ERRORS]


class UnregisteredWebhook(InvalidSubmission):
    """A callback_url is not registered. It may have been when the submission was admitted."""


class ParserFailed(IngestError):
    """The process that parses large bodies died or took too long. The body may be the reason."""


class Unavailable(IngestError):
    """A dependency is unreachable or does not answer in time; the caller can retry later."""


class StoreUnavailable(Unavailable):
    """The store is unreachable, refuses writes, does not answer in time, or has a record that cannot be read."""


class BrokerUnavailable(Unavailable):
    """The broker is unreachable, is blocked, or does not answer in time. Nothing was sent."""


class ConfigurationError(IngestError):
    """Settings, topology or permissions are wrong; the message says what to change."""


def cause_of(error: BaseException | None) -> str:
    """Return what an error says, as a clause that is never empty. None is an answer that did not arrive."""
    said = "" if error is None else str(error).strip()
    if said:
        return said
    if error is None or isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, (EOFError, StopAsyncIteration, ConnectionError)):
        return "the other side closed the connection"
    return type(error).__name__
