"""What to do about a dead letter, by its reason."""

from typing import Final

from ingest.domain.dead_letters import EXPIRED, DeadLetter
from ingest.domain.errors import Reason

INVALID_PAYLOAD: Final = "Invalid payload: redriving fails again; ask the customer to resubmit."
_TRIMMED: Final = (
    "Never redriven: `ingest dlq trim` has removed its body. Ask the customer to resubmit what has this message_id or "
    "SHA-256."
)
REMEDIES: Final[dict[str, str]] = {
    Reason.MALFORMED: INVALID_PAYLOAD,
    Reason.INVALID: INVALID_PAYLOAD,
    Reason.TOO_LARGE: INVALID_PAYLOAD,
    Reason.UNSUPPORTED_CONTENT_TYPE: INVALID_PAYLOAD,
    Reason.BAD_PROPERTY: "Redrive it: it is submitted without the property. Ask the customer to leave it out.",
    Reason.BAD_ROUTING_KEY: INVALID_PAYLOAD,
    Reason.MISSING_MESSAGE_ID: INVALID_PAYLOAD,
    Reason.UNKNOWN_CUSTOMER: "Add the customer with `ingest customer add`, then redrive.",
    Reason.CUSTOMER_DISABLED: "Redrive it after `ingest customer set CUST --enabled`, or purge it.",
    Reason.USER_MISMATCH: "Never redriven: another user sent it in the customer's name.",
    Reason.FORGED_ADMISSION: (
        "It claims to come from the service. If its user is one of the service's, add it to INGEST_TRUSTED_USERS, then "
        "redrive; otherwise it is never redriven."
    ),
    Reason.KEY_CONFLICT: "Redriving fails again while the customer is strict and the key is remembered.",
    Reason.QUOTA_EXHAUSTED: "Redrive it next month, or after `ingest customer set CUST --quota N`.",
    "delivery_limit": "Workers failed on it repeatedly: read their logs, correct the cause, then redrive.",
    "rejected": "Redrive it.",
    "maxlen": "Remove the policy's max-length (`ingest doctor` shows it), then redrive.",
    "unknown": "It is not from this service: read it with `ingest dlq show`.",
}
_OWN_EXPIRATION: Final = (
    "Its producer has set `expiration`: ask the customer to leave it out. Redrive it: it is submitted without. (If "
    "`ingest doctor` also reports a message-ttl, remove that first.)"
)
_MESSAGE_TTL: Final = (
    "Its queue has a message-ttl (see `ingest doctor`): remove it from the policy or the queue, then redrive."
)


def remedy(dead: DeadLetter) -> str:
    """Return what to do about a dead letter; empty if its reason is not known."""
    if dead.trimmed is not None:
        return _TRIMMED
    if dead.reason == EXPIRED:
        return _MESSAGE_TTL if dead.expiration is None else _OWN_EXPIRATION
    return REMEDIES.get(dead.reason, "")
