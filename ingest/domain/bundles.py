"""Bundles: one message of the broker for several submissions that the shim has admitted together.

A message costs the broker, the shim and the worker about the same whether it has one submission or many. So the single
tasks of one micro-batch travel together, and share one confirm. A bundle is JSON, so that an operator can read it.

`ingest.broker.bundles` packs and unpacks them. Of the other code, only the classifier and dead letters handle a bundle,
if it was not unpacked.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Final

import msgspec

from ingest.domain import admitted
from ingest.domain.addresses import bundle_routing_key, route_of
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import Delivery, Message

TYPE: Final = "ingest.bundle.v1"
"""The AMQP `type` property of a bundle. It counts only with a `user_id` of the service itself."""
MAX_SUBMISSIONS: Final = 64
MAX_BYTES: Final = 64 * 1024
"""Bytes of the messages in a bundle. They are held until all of its submissions are finished."""


class _Packed(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A message in a bundle. Its type is that of an admitted submission, its body is JSON."""

    routing_key: str
    message_id: str
    body: msgspec.Raw
    timestamp: int | None = None
    headers: dict[str, Any] = {}


class _BundleBody(msgspec.Struct, frozen=True, gc=False):
    submissions: Annotated[list[_Packed], msgspec.Meta(min_length=1)]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_BundleBody).decode


def pack(messages: Sequence[Message]) -> Message:
    """Return the bundle of admitted submissions that have the same route."""
    first = messages[0]
    packed = [
        _Packed(message.routing_key, message.message_id, msgspec.Raw(message.body), message.timestamp, message.headers)
        for message in messages
    ]
    return Message(
        exchange=first.exchange,
        routing_key=bundle_routing_key(route_of(first.routing_key)),
        body=_encode(_BundleBody(packed)),
        message_id=f"bundle:{first.message_id}",
        type=TYPE,
        timestamp=first.timestamp,
    )


def is_bundle(delivery: Delivery, trusted_users: AbstractSet[str]) -> bool:
    """Return whether a delivery is a bundle that one of the service's own users has sent."""
    return delivery.type == TYPE and delivery.user_id in trusted_users


def unpack(bundle: Delivery, token_of: Callable[[int], Any] | None = None) -> list[Delivery]:
    """Return the submissions of a bundle, as if each had been delivered by itself. Check `is_bundle` first.

    Args:
        bundle: the delivery.
        token_of: returns the token of the submission with this index; by default, all have the bundle's.

    Raises:
        InvalidSubmission: MALFORMED, for example for another version.
    """
    try:
        packed = _decode(bundle.body).submissions
    except (ValueError, RecursionError) as error:
        raise InvalidSubmission(Reason.MALFORMED, f"body is not a bundle of submissions: {error}") from None
    share = bundle.properties_size // len(packed)
    return [
        Delivery(
            body=bytes(one.body),  # a copy: it must not keep the others in memory
            queue=bundle.queue,
            routing_key=one.routing_key,
            message_id=one.message_id,
            content_type=bundle.content_type,
            user_id=bundle.user_id,
            type=admitted.TYPE,
            headers=bundle.headers | one.headers if bundle.headers else one.headers,
            redelivered=bundle.redelivered,
            deliveries=bundle.deliveries,
            token=bundle.token if token_of is None else token_of(index),
            timestamp=one.timestamp,
            deaths_checked=bundle.deaths_checked,
            properties_size=share,
        )
        for index, one in enumerate(packed)
    ]
