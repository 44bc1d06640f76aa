"""What the shim tells the worker: a submission that is validated, claimed and charged already.

JSON like everything else on the broker, so that an operator can read it; the worker does not parse the tasks'
bodies again, it passes their bytes on.
"""

import msgspec

from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import Message
from ingest.domain.submissions import Submission
from ingest.domain.topology import SUBMISSIONS
from ingest.domain.trace import Trace

TYPE = "ingest.admitted.v1"
"""The AMQP `type` property of such a message. Believed only from the service's own, broker-checked `user_id`."""


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """`created_at` in Unix milliseconds, `retention` in seconds; `replayed`: task ids that were accepted before."""

    submission: Submission
    created_at: int
    retention: int
    replayed: tuple[str, ...] = ()


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Admitted).decode


def to_message(admitted: Admitted, trace: Trace | None = None) -> Message:
    """The message that carries it to the workers; the client's trace stands in its headers."""
    submission = admitted.submission
    return Message(
        exchange=SUBMISSIONS,
        routing_key=f"{submission.kind}.submitted.{submission.cust_id}",
        body=_encode(admitted),
        message_id=submission.id,
        type=TYPE,
        headers=trace.headers() if trace is not None else {},
    )


def from_body(body: bytes) -> Admitted:
    """Raises InvalidSubmission (MALFORMED) where the body is not one, e.g. of another version."""
    try:
        return _decode(body)
    except (ValueError, RecursionError) as error:
        raise InvalidSubmission(Reason.MALFORMED, f"body is no admitted submission: {error}") from None
