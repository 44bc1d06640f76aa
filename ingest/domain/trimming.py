"""Trimmed dead letters: without body and field errors, so that they take little of the broker's disk.

A trimmed dead letter is an envelope that the service publishes. It keeps the id, the reason, the beginning of the error
sentence, the time of death and the properties of the submission, and says when the body was removed, how many bytes it
had, and its SHA-256. So a customer's copy of the submission can be compared with it. It cannot be submitted again.
"""

import hashlib
from typing import Any, Final

import msgspec

from ingest.domain import topology
from ingest.domain.dead_letters import REASON_HEADER, TIME_HEADER, DeadLetter, Trimmed, properties_of
from ingest.domain.events import rfc3339
from ingest.domain.messages import Delivery, Message

_ROUTING_KEY: Final = "rejected.trimmed"
_MAX_ERROR: Final = 200
_MAX_REASON: Final = 64
"""Characters. A producer can forge the reason of an expired submission on RabbitMQ 3."""
_SHORT: Final = 255
"""Bytes of an AMQP short string."""
_LATEST: Final = 253_402_300_799
"""The last second of the year 9999, in Unix seconds."""
_PROPERTIES: Final = 240
"""About the bytes of the properties of a trimmed dead letter, other than its message_id and our headers. The broker
adds headers of its own when it is read."""


def trimmed_letter(dead: DeadLetter, now: str) -> Message:
    """Return the message that takes the place of a dead letter; `now` is RFC 3339. Check `can_be_trimmed` first."""
    trimmed = Trimmed(now, *_removed(dead))
    reason = _shortened(dead.reason, _MAX_REASON)
    headers = {REASON_HEADER: reason, **dead.redrives.headers()}
    timestamp = _died_at(dead)
    if timestamp is not None:
        headers[TIME_HEADER] = rfc3339(timestamp * 1000)
    fits = len(dead.id.encode()) <= _SHORT
    return Message(
        exchange=topology.DEAD,
        routing_key=_ROUTING_KEY,
        body=msgspec.json.encode({**_facts(dead), "trimmed": trimmed}),
        message_id=dead.id if fits else f"dead:{hashlib.sha256(dead.id.encode()).hexdigest()[:32]}",
        headers=headers,
        timestamp=timestamp,
    )


def can_be_trimmed(dead: DeadLetter) -> bool:
    """Return whether a dead letter is a submission whose body is still there."""
    return dead.origin is not None and dead.trimmed is None


def fingerprint(dead: DeadLetter) -> bytes:
    """Return 16 bytes that a dead letter has in common with itself trimmed, and with no other than its copies."""
    facts = msgspec.json.encode([_facts(dead), _died_at(dead), *_removed(dead)])
    return hashlib.sha256(facts).digest()[:16]


def size_of(letter: Delivery | Message) -> int:
    """Return how many bytes of the broker's disk a dead letter takes, without the broker's own for each message."""
    if isinstance(letter, Delivery):
        return len(letter.body) + letter.properties_size
    headers = sum(len(name) + len(value) for name, value in letter.headers.items())
    return len(letter.body) + len(letter.message_id) + headers + _PROPERTIES


def sender(dead: DeadLetter, trusted: frozenset[str]) -> str:
    """Return whose dead letter it is: the customer, or the user that sent it in the customer's name.

    It is empty if neither is known. So a user that sends in another name has only its own dead letters trimmed.
    """
    user_id = None if dead.origin is None else dead.origin.user_id
    return dead.cust_id if user_id is None or user_id in trusted else user_id


def _facts(dead: DeadLetter) -> dict[str, Any]:
    """Return what stays of a dead letter; the same for it and for itself trimmed."""
    if dead.origin is None:
        raise ValueError(f"{dead.id} contains no submission")
    return {
        "id": dead.id,
        "reason": _shortened(dead.reason, _MAX_REASON),
        "error": _shortened(dead.error, _MAX_ERROR),
        "errors": [],
        "submission": properties_of(dead.origin),
    }


def _removed(dead: DeadLetter) -> tuple[int, str]:
    """Return the size and the SHA-256 of the body, whether it is still there or not."""
    if dead.trimmed is not None:
        return dead.trimmed.body_bytes, dead.trimmed.body_sha256
    body = dead.origin.body if dead.origin is not None else b""
    return len(body), hashlib.sha256(body).hexdigest()


def _died_at(dead: DeadLetter) -> int | None:
    """Return the time of death in Unix seconds; None if it is unknown or impossible."""
    return int(dead.died_at) if dead.died_at is not None and 0 <= dead.died_at <= _LATEST else None


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
