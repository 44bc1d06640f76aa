"""What a delivery costs, for sharing between queues."""

from typing import Final

from ingest.domain.addresses import is_batch
from ingest.domain.identity import MAX_ITEMS
from ingest.domain.messages import Delivery
from ingest.domain.submissions import BYTES_PER_TASK

_TYPE: Final = b'"type"'


def cost_of(delivery: Delivery) -> int:
    """Return roughly how many tasks a delivery has, at least 1, without parsing it.

    Every task of a batch has a name `type`, which may also occur elsewhere and may be written in another way. So the
    number is limited to that of the largest batch, and the size counts, too.
    """
    by_size = 1 + len(delivery.body) // BYTES_PER_TASK
    if not is_batch(delivery.routing_key):
        return by_size
    return max(by_size, min(delivery.body.count(_TYPE), MAX_ITEMS))
