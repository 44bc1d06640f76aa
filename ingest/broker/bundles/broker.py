"""A broker whose publishers pack bundles and whose consumers unpack them."""

import asyncio

from ingest.broker.bundles.consumer import UnbundlingConsumer
from ingest.broker.bundles.publisher import BundlingPublisher
from ingest.broker.decorators import BrokerDecorator
from ingest.domain.ports import Broker, Consumer, Publisher
from ingest.domain.topology import is_admitted_queue


class BundlingBroker(BrokerDecorator):
    """`domain.ports.Broker` around another.

    Args:
        broker: of this process.
        trusted_users: the service's own AMQP users; only their bundles count.
    """

    def __init__(self, broker: Broker, trusted_users: frozenset[str]) -> None:
        super().__init__(broker)
        self._trusted = trusted_users
        self._single: Publisher | None = None
        self._opening = asyncio.Lock()

    async def publisher(self, connections: int = 1) -> BundlingPublisher:
        return BundlingPublisher(await self._broker.publisher(connections))

    async def consumer(self, queue: str, prefetch: int) -> Consumer:
        consumer = await self._broker.consumer(queue, prefetch)
        if not is_admitted_queue(queue):
            return consumer
        return UnbundlingConsumer(consumer, self._trusted, self._single_publisher)

    async def close(self) -> None:
        if self._single is not None:
            await self._single.close()
        await super().close()

    async def _single_publisher(self) -> Publisher:
        """Return the publisher of separated submissions. It is opened when it is first needed."""
        async with self._opening:
            if self._single is None:
                self._single = await self._broker.publisher()
            return self._single
