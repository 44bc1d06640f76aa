"""Dead letters: written by a worker that rejects a submission, read back, and submitted again.

`ingest.dead` has two kinds of messages. A worker's dead letter is an envelope: the reason code in a header, details and
the submission in the body. A message that the broker dead-lettered is the submission itself, with RabbitMQ's `x-death`
headers.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from ingest.domain import addresses, admitted, bundles, redrives, topology
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.events import rfc3339
from ingest.domain.messages import JSON, MAX_MESSAGE, Delivery, Message
from ingest.domain.redrives import Redrives, redrives_of, unix_seconds
from ingest.domain.trace import trace_of

REASON_HEADER: Final = "x-ingest-reason"
TIME_HEADER: Final = "x-ingest-rejected-at"
ENVELOPE_HEADER: Final = "x-ingest-envelope"
"""The envelope without the submission's body; the body of the message is then the submission's body."""
HEADERS: Final = (
    REASON_HEADER,
    TIME_HEADER,
    ENVELOPE_HEADER,
    *redrives.HEADERS,
    "x-death",
    "x-first-death-queue",
    "x-first-death-reason",
)
"""The headers that `read` uses, besides those of the trace. RabbitMQ sets the last three."""
MAX_ENVELOPED: Final = 256 * 1024
"""The most bytes of a submission's body in an envelope. 8 MiB of control characters are 48 MiB in JSON, which takes
0.1 s. A message above MAX_MESSAGE would be refused on every attempt, and its submission would never be finished."""
_LARGEST_HEADER: Final = 64 * 1024
UNKNOWN: Final = "unknown"
"""The reason of a message that neither a worker nor the broker put there."""

EXPIRED: Final = "expired"
"""RabbitMQ's reason for a message that waited longer than its `expiration` or the queue's message-ttl."""

_MILLISECONDS: Final = re.compile("[0-9]{1,20}")
_SHORT: Final = 255
"""Bytes of an AMQP short string."""


class Origin(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The submission as it was sent. The broker has checked `user_id`; `timestamp` is in Unix seconds."""

    queue: str | None
    routing_key: str
    message_id: str | None
    content_type: str | None
    type: str | None
    user_id: str | None
    timestamp: int | None
    body: bytes


_PROPERTIES: Final = Origin.__struct_fields__[:-1]
"""All fields of an `Origin`, besides the body."""


class Trimmed(msgspec.Struct, frozen=True):
    """What is known about a body that was removed to save disk (`ingest.domain.trimming`). `at` is RFC 3339."""

    at: str
    body_bytes: int
    body_sha256: str


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One message of `ingest.dead`.

    `id` is its message_id, or a hash if it has none; copies have the same id. `died_at` is in Unix seconds, None if
    it is not recorded, or if its producer may have forged it. If `origin` is None, the message is not a submission, and
    only `delivery` can be shown. `expiration` is the producer's property of a submission that expired in its queue, in
    milliseconds. If it is `trimmed`, the body of `origin` is empty, and there are no `errors`. `redrives` are the
    earlier ones.
    """

    id: str
    reason: str
    error: str
    errors: tuple[dict[str, str], ...] = ()
    cust_id: str = ""
    died_at: float | None = None
    redrives: Redrives = redrives.NONE
    origin: Origin | None = None
    expiration: str | None = None
    trimmed: Trimmed | None = None
    delivery: Delivery


def dead_letter(delivery: Delivery, error: InvalidSubmission, now: str) -> Message:
    """Return the dead letter of a rejected delivery: reason code in a header, details and submission in the body.

    Args:
        delivery: the rejected delivery.
        error: why it is rejected.
        now: the time, RFC 3339.
    """
    submission = properties_of(delivery)
    detail = {"reason": error.reason, "error": error.message, "errors": error.errors, "submission": submission}
    headers = {REASON_HEADER: str(error.reason), TIME_HEADER: now, **redrives_of(delivery.headers).headers()}
    if len(delivery.body) <= MAX_ENVELOPED:
        body = msgspec.json.encode(detail | {"submission": submission | body_fields(delivery.body)})
    else:
        envelope = msgspec.json.encode(detail)
        if len(envelope) > _LARGEST_HEADER:
            envelope = msgspec.json.encode(detail | {"errors": []})
        headers[ENVELOPE_HEADER] = envelope.decode()
        body = delivery.body[:MAX_MESSAGE]  # RabbitMQ 3 may take larger ones; redriven, it is still too large
    return Message(
        exchange=topology.DEAD,
        routing_key=f"rejected.{error.reason}",
        body=body,
        message_id=f"dead:{digest(delivery)}",
        headers=headers,
        timestamp=None if (seconds := unix_seconds(now)) is None else int(seconds),
    )


def rewritten(dead: DeadLetter) -> Message:
    """Return a dead letter of a worker for a submission that the broker has dead-lettered. It has the same id.

    Raises ValueError if it contains no submission.
    """
    if dead.origin is None:
        raise ValueError(f"{dead.id} contains no submission")
    submission = properties_of(dead.origin) | body_fields(dead.origin.body)
    headers: dict[str, Any] = {REASON_HEADER: dead.reason, **dead.redrives.headers()}
    if dead.died_at is not None:
        headers[TIME_HEADER] = rfc3339(int(dead.died_at * 1000))
    if (trace := trace_of(dead.delivery.headers)) is not None:
        headers |= trace.headers()
    return Message(
        exchange=topology.DEAD,
        routing_key=f"rejected.{dead.reason}",
        body=msgspec.json.encode(
            {"reason": dead.reason, "error": dead.error, "errors": dead.errors, "submission": submission}
        ),
        message_id=dead.id,
        headers=headers,
        timestamp=None if dead.died_at is None else int(dead.died_at),
    )


def properties_of(submission: Origin | Delivery) -> dict[str, Any]:
    """Return what an envelope says about a submission, besides its body."""
    return {name: getattr(submission, name) for name in _PROPERTIES}


def digest(delivery: Delivery) -> str:
    """Return a name for a submission, 32 hex digits.

    It is the same for a redelivery and a redrive, and different for another body or another timestamp.
    """
    whole = hashlib.sha256(f"{delivery.routing_key}:{delivery.message_id}:{delivery.timestamp}:".encode())
    whole.update(delivery.body)
    return whole.hexdigest()[:32]


def body_fields(body: bytes) -> dict[str, str]:
    """Return a body as a JSON field: `body`, or `body_base64` if it is not UTF-8."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def read(delivery: Delivery, trusted: frozenset[str]) -> DeadLetter:
    """Read a message of `ingest.dead`. Any message can be read; nothing is raised.

    An envelope counts only if one of the service's own users (`trusted`) sent it with a routing key that producers
    cannot use. Otherwise a producer could forge a submission of another customer. A time of death counts only if the
    broker has checked it, or one of the service's own users sent the message.
    """
    if delivery.user_id in trusted and delivery.routing_key.startswith("rejected."):
        return _read_envelope(delivery, trusted)
    address = addresses.parse(delivery.routing_key)
    death = _death(delivery.headers, checked=delivery.deaths_checked or delivery.user_id in trusted)
    if address is None:
        error = (
            f"not a submission: user {delivery.user_id} put it here, who is not one of the service's users "
            "(INGEST_TRUSTED_USERS)"
        )
        return DeadLetter(id=_id(delivery), reason=UNKNOWN, error=error, died_at=death.died_at, delivery=delivery)
    return DeadLetter(
        id=_id(delivery),
        reason=death.reason,
        error=f"dead-lettered by the broker: {death.reason}{death.cause}",
        cust_id=address.cust_id,
        died_at=death.died_at,
        redrives=redrives_of(delivery.headers) if delivery.user_id in trusted else redrives.NONE,
        expiration=death.expiration,
        origin=Origin(
            queue=death.queue,
            routing_key=delivery.routing_key,
            message_id=delivery.message_id,
            content_type=delivery.content_type,
            type=delivery.type,
            user_id=delivery.user_id,
            timestamp=delivery.timestamp,
            body=delivery.body,
        ),
        delivery=delivery,
    )


def redrive_blocker(dead: DeadLetter, trusted: frozenset[str]) -> str | None:
    """Why a dead letter must not be submitted again, as a sentence; None if it may be.

    A redriven submission is published by the service's user, who may submit for any customer. So it must not be one
    that another user sent in a customer's name.
    """
    origin = dead.origin
    if dead.trimmed is not None:
        return "`ingest dlq trim` has removed its body to save disk: ask the customer to submit it again"
    if origin is None:
        return "it contains no submission"
    if any(
        len((text or "").encode()) > _SHORT for text in (origin.routing_key, origin.message_id, origin.content_type)
    ):
        return "one of its properties is longer than AMQP allows"
    if len(origin.body) > MAX_MESSAGE:
        return f"its body has more than {MAX_MESSAGE:,} bytes"
    if origin.user_id in trusted:
        return None  # perhaps only since it was rejected
    if dead.reason in (Reason.USER_MISMATCH, Reason.FORGED_ADMISSION):
        return f"another user than customer {dead.cust_id} sent it"
    if origin.type in (admitted.TYPE, bundles.TYPE):
        return "it claims to be admitted and was not sent by the service"
    if origin.user_id not in (None, dead.cust_id):
        return f"user {origin.user_id} sent it in the name of customer {dead.cust_id}"
    return None


def resubmission(dead: DeadLetter) -> Message:
    """Return the message that submits a dead letter again, under the same id: after an acceptance it is a duplicate.

    Check `redrive_blocker` first.
    """
    origin = dead.origin
    if origin is None or dead.trimmed is not None:
        raise ValueError(f"{dead.id} contains no submission")
    return submit_again(origin, dead.delivery.headers, dead.redrives.next(dead.died_at))


def submit_again(
    submission: Origin | Delivery, headers: Mapping[str, Any], redriven: Redrives = redrives.NONE
) -> Message:
    """Return a message that submits a submission again, with its timestamp and the trace context in `headers`.

    `redriven`: its redrives, including this one. Those in `headers` do not count, because a producer may forge them.
    """
    trace = trace_of(headers)
    return Message(
        exchange=topology.SUBMISSIONS,
        routing_key=addresses.with_first_queue(submission.routing_key),
        body=submission.body,
        message_id=submission.message_id or "",
        content_type=submission.content_type or JSON,
        type=submission.type or "",
        headers=redriven.headers() | (trace.headers() if trace else {}),
        timestamp=submission.timestamp,
    )


def _read_envelope(delivery: Delivery, trusted: frozenset[str]) -> DeadLetter:
    try:
        envelope = delivery.headers.get(ENVELOPE_HEADER)
        detail = msgspec.json.decode(delivery.body if envelope is None else str(envelope))
        submission = detail["submission"]
        trimmed = msgspec.convert(detail["trimmed"], Trimmed) if "trimmed" in detail else None
        origin = Origin(
            body=b"" if trimmed is not None else _body(submission) if envelope is None else delivery.body,
            **{name: submission.get(name) for name in _PROPERTIES},
        )
        address = addresses.parse(origin.routing_key)
        return DeadLetter(
            id=_id(delivery) if trimmed is None else str(detail["id"]),
            reason=str(detail["reason"]),
            error=str(detail["error"]),
            errors=tuple(detail["errors"]),
            cust_id=address.cust_id if address else "",
            died_at=unix_seconds(delivery.headers.get(TIME_HEADER)),
            redrives=redrives_of(delivery.headers) if origin.user_id in trusted else redrives.NONE,
            origin=origin,
            trimmed=trimmed,
            delivery=delivery,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return DeadLetter(
            id=_id(delivery), reason=UNKNOWN, error=f"its envelope cannot be read: {error}", delivery=delivery
        )


def _body(submission: Mapping[str, Any]) -> bytes:
    if "body" in submission:
        return str(submission["body"]).encode()
    try:
        return base64.b64decode(submission["body_base64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"bad base64: {error}") from error


def _id(delivery: Delivery) -> str:
    return delivery.message_id or f"none:{digest(delivery)}"


class _Death(NamedTuple):
    """What the broker has recorded about the latest death of a message."""

    queue: str | None
    reason: str
    died_at: float | None
    expiration: str | None
    checked: bool

    @property
    def cause(self) -> str:
        """Whose setting made it expire, as the end of a sentence; empty for other reasons."""
        if self.reason != EXPIRED:
            return ""
        if self.expiration is None and not self.checked:
            return "; its producer, a policy or the queue limits how long it may wait"
        if self.expiration is None:
            return "; a policy or the queue sets a message-ttl"
        return f"; its producer set the property expiration to {self.expiration} ms"


def _death(headers: Mapping[str, Any], *, checked: bool) -> _Death:
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else {}
    queue = last.get("queue") or headers.get("x-first-death-queue")
    reason = last.get("reason") or headers.get("x-first-death-reason")
    expiration = last.get("original-expiration")
    own = expiration if isinstance(expiration, str) and _MILLISECONDS.fullmatch(expiration) else None
    died_at = unix_seconds(last.get("time")) if checked else None
    return _Death(queue and str(queue), str(reason or UNKNOWN), died_at, own, checked)
