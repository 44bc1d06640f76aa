"""The message from the shim to the worker: a submission that is validated, claimed and charged.

It is JSON, so that an operator can read it. The worker does not parse the tasks' bodies again; it copies their bytes.
"""

import msgspec

from ingest.domain.addresses import DEFAULT_ROUTE, routing_key
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.identity import SubmissionKind
from ingest.domain.messages import Message
from ingest.domain.submissions import Submission
from ingest.domain.topology import SUBMISSIONS
from ingest.domain.trace import Trace

TYPE = "ingest.admitted.v1"
"""The AMQP `type` property of such a message. It counts only with a `user_id` of the service itself."""

_MAX_BUNDLED = 16 * 1024
"""Bytes of the largest message that may travel with others: the bytes of larger ones cost more than the message."""


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """An admitted submission.

    `created_at` is in Unix milliseconds, `retention` in seconds. `replayed` are ids of tasks that were accepted before.
    `item_created_at` has the keyed items that were claimed before their batch, by id.
    """

    submission: Submission
    created_at: int
    retention: int
    replayed: tuple[str, ...] = ()
    item_created_at: dict[str, int] = {}


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Admitted).decode


def to_message(admitted: Admitted, trace: Trace | None = None, route: str = DEFAULT_ROUTE) -> Message:
    """Return the message for the workers, with the client's trace context in its headers.

    `route` says which queue takes it (`domain.addresses`).
    """
    submission = admitted.submission
    body = _encode(admitted)
    return Message(
        exchange=SUBMISSIONS,
        routing_key=routing_key(submission.kind, submission.cust_id, route),
        body=body,
        message_id=submission.id,
        type=TYPE,
        timestamp=admitted.created_at // 1000,
        headers=trace.headers() if trace is not None else {},
        may_be_bundled=submission.kind is SubmissionKind.TASK and len(body) <= _MAX_BUNDLED,
    )


def from_body(body: bytes) -> Admitted:
    """Decode the body of such a message. Raises InvalidSubmission (MALFORMED), for example for another version."""
    try:
        return _decode(body)
    except (ValueError, RecursionError) as error:
        raise InvalidSubmission(Reason.MALFORMED, f"body is not an admitted submission: {error}") from None
