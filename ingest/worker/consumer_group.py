"""The consumers of several queues, for micro-batches with deliveries of more than one."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ingest.domain.messages import Delivery
from ingest.domain.ports import Consumer


class ConsumerGroup:
    """Finishes deliveries with the consumers that received them (`domain.ports.Acknowledger`).

    Deliveries of a consumer that was removed are not alive: the broker delivers them again.

    Args:
        consumers: by the name of the queue; it may change.
    """

    def __init__(self, consumers: Mapping[str, Consumer]) -> None:
        self._consumers = consumers

    def alive(self, delivery: Delivery) -> bool:
        consumer = self._consumers.get(delivery.queue)
        return consumer is not None and consumer.alive(delivery)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        for queue, own in by_queue(deliveries).items():
            if queue in self._consumers:
                await self._consumers[queue].ack(own)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        for queue, own in by_queue(deliveries).items():
            if queue in self._consumers:
                await self._consumers[queue].requeue(own)


def by_queue(deliveries: Sequence[Delivery]) -> dict[str, list[Delivery]]:
    """Return the deliveries of each queue, in their order."""
    groups: defaultdict[str, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        groups[delivery.queue].append(delivery)
    return groups
