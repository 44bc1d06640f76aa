"""Messages independent of the broker: a message to publish, the outcome of a publish, and a delivery."""

from enum import StrEnum
from typing import Any, Final

import msgspec

JSON = "application/json"
CLOUDEVENTS = "application/cloudevents+json"
MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of the largest body that is published: RabbitMQ 4 closes the channel that publishes a larger one."""


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A persistent message to publish. If it is `mandatory` and reaches no queue, its outcome is UNROUTABLE.

    `timestamp` is the AMQP property, in Unix seconds. `may_be_bundled`: it may travel with others in one message of the
    broker (`domain.bundles`).
    """

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    mandatory: bool = True
    content_type: str = JSON
    type: str = ""
    headers: dict[str, Any] = {}
    timestamp: int | None = None
    may_be_bundled: bool = False


class PublishOutcome(StrEnum):
    """The outcome of one publish. Only CONFIRMED means that the broker has stored the message."""

    CONFIRMED = "confirmed"
    UNROUTABLE = "unroutable"
    """Returned, because no queue is bound for it. Certainly not taken."""
    NACKED = "nacked"
    """Refused by the broker, for example because a queue is full. It may still be in another queue."""
    UNKNOWN = "unknown"
    """There was no answer in time, or the connection broke. The message may be stored now or later."""
    UNSENT = "unsent"
    """Not written, because there was no connection or it was blocked. Certainly not taken."""
    TOO_LARGE = "too_large"
    """Not written, because its body is larger than MAX_MESSAGE. Certainly not taken; a retry ends in the same way."""

    @property
    def certainly_not_taken(self) -> bool:
        """Whether it is certain that the message has, and will have, no effect."""
        return self in (PublishOutcome.UNROUTABLE, PublishOutcome.UNSENT, PublishOutcome.TOO_LARGE)


class Delivery(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """A message that was received and is not acknowledged yet.

    `token` belongs to the adapter that delivered it. `deliveries` counts earlier attempts if the broker reports them
    (`x-delivery-count`), otherwise it is 0. `redelivered`: an earlier attempt may have finished without this process
    knowing. `user_id` is set only if the broker checked it. `timestamp` is the producer's, in Unix seconds. `headers`
    has at least the headers that the service reads. `deaths_checked`: the header `x-death`, if any, is the broker's and
    not the producer's. `properties_size`: the bytes of all properties and headers of a dead letter.
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
    priority: int | None = None
    content_encoding: str | None = None
    deaths_checked: bool = False
    properties_size: int = 0
