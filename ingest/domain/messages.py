"""What travels over the broker, without the broker: a message out, its outcome, and a delivery in."""

from enum import StrEnum
from typing import Any

import msgspec

JSON = "application/json"
CLOUDEVENTS = "application/cloudevents+json"


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A persistent message to publish. `mandatory`: it must reach a queue, else the outcome is UNROUTABLE."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    mandatory: bool = True
    content_type: str = JSON
    type: str = ""
    headers: dict[str, Any] = {}


class PublishOutcome(StrEnum):
    """What became of one publish. Only CONFIRMED means that the broker has it."""

    CONFIRMED = "confirmed"
    UNROUTABLE = "unroutable"
    """Returned: no queue is bound for it. Certainly not taken."""
    NACKED = "nacked"
    """Refused by the broker, e.g. a full queue. It may all the same be in one of several queues."""
    UNKNOWN = "unknown"
    """No answer in time, or the connection broke: it may arrive, now or later."""
    UNSENT = "unsent"
    """Never written to the broker: no connection, or blocked. Certainly not taken."""

    @property
    def certainly_not_taken(self) -> bool:
        """Whether the message can have no effect any more."""
        return self in (PublishOutcome.UNROUTABLE, PublishOutcome.UNSENT)


class Delivery(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """A message received and not yet acknowledged. `token` belongs to the adapter that delivered it.

    `deliveries` counts earlier attempts where the broker tells it (`x-delivery-count`), else 0.
    `redelivered`: an earlier attempt may have come to an end of which nothing is known here.
    `user_id` is set only where the broker has checked it. `timestamp` is the producer's, in Unix seconds.
    """

    body: bytes
    queue: str
    routing_key: str
    message_id: str | None
    content_type: str | None
    user_id: str | None
    type: str | None
    headers: dict[str, Any]
    redelivered: bool
    deliveries: int
    token: Any
    timestamp: int | None = None
