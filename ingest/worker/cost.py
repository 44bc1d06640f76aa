"""What a delivery costs, for sharing between queues."""

from typing import Final

from ingest.domain.addresses import is_batch
from ingest.domain.messages import Delivery
from ingest.domain.submissions import BYTES_PER_TASK

_TYPE: Final = b'"type"'


def cost_of(delivery: Delivery) -> int:
    """Return roughly how many tasks a delivery has, at least 1, without parsing it.

    Every task of a batch has a name `type`. A producer can write that in another way, so the size counts too.
    """
    body = delivery.body
    by_size = 1 + len(body) // BYTES_PER_TASK
    return max(by_size, body.count(_TYPE)) if is_batch(delivery.routing_key) else by_size
