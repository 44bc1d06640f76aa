"""Base classes of decorators: they pass every call on, and subclasses override what they observe."""

from collections.abc import Sequence

from ingest.domain.messages import Delivery
from ingest.domain.ports import Broker, ConnectionState, Consumer, Publisher


class BrokerDecorator:
    """A `domain.ports.Broker` around another. Subclasses add `publisher` and `consumer`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @property
    def user(self) -> str | None:
        return self._broker.user

    def connections(self) -> list[ConnectionState]:
        return self._broker.connections()

    async def declare(self) -> None:
        await self._broker.declare()

    async def depths(self, queues: Sequence[str]) -> dict[str, int | None]:
        return await self._broker.depths(queues)

    async def close(self) -> None:
        await self._broker.close()


class PublisherDecorator:
    """A `domain.ports.Publisher` around another. Subclasses add `publish`."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def ready(self) -> None:
        await self._publisher.ready()

    async def close(self) -> None:
        await self._publisher.close()


class ConsumerDecorator:
    """A `domain.ports.Consumer` around another. Subclasses add `receive`, `ack` and `requeue`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    @property
    def held(self) -> int:
        return self._consumer.held

    def alive(self, delivery: Delivery) -> bool:
        return self._consumer.alive(delivery)

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        await self._consumer.set_apart(deliveries, extra)

    async def pause(self) -> None:
        await self._consumer.pause()

    async def resume(self) -> None:
        await self._consumer.resume()

    async def stop(self) -> None:
        await self._consumer.stop()

    async def close(self) -> None:
        await self._consumer.close()
