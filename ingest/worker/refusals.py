"""What becomes of a submission that cannot be accepted: a dead letter with all it takes to submit it again."""

import base64
import hashlib
from typing import Any, Final

import msgspec

from ingest.domain import topology
from ingest.domain.errors import InvalidSubmission
from ingest.domain.messages import Delivery, Message

REASON_HEADER: Final = "x-ingest-reason"


class Refusal(msgspec.Struct, frozen=True, eq=False):
    """A delivery and why it is refused; `cust_id` as far as the routing key told it."""

    delivery: Delivery
    error: InvalidSubmission
    cust_id: str


def digest(delivery: Delivery) -> str:
    """Names the submission as it came: the same for a redelivery, another for another body. 32 hex digits."""
    whole = f"{delivery.routing_key}:{delivery.message_id}:".encode() + delivery.body
    return hashlib.sha256(whole).hexdigest()[:32]


def dead_letter(delivery: Delivery, error: InvalidSubmission) -> Message:
    """The reason as a code in a header; detail and the submission as it came in the body."""
    submission: dict[str, Any] = {
        "queue": delivery.queue,
        "routing_key": delivery.routing_key,
        "message_id": delivery.message_id,
        "content_type": delivery.content_type,
        "user_id": delivery.user_id,
    }
    try:
        submission["body"] = delivery.body.decode()
    except UnicodeDecodeError:
        submission["body_base64"] = base64.b64encode(delivery.body).decode()
    detail = {"reason": error.reason, "error": error.message, "errors": error.errors, "submission": submission}
    return Message(
        exchange=topology.DEAD,
        routing_key=f"rejected.{error.reason}",
        body=msgspec.json.encode(detail),
        message_id=f"dead:{digest(delivery)}",
        headers={REASON_HEADER: str(error.reason)},
    )
