"""A broker whose publishers and consumers are counted and timed."""

import time
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from ingest.domain import metrics
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.metrics import Meter
from ingest.domain.ports import Broker, ConnectionState, Consumer, Publisher


class MeteredBroker:
    """`domain.ports.Broker` around another. `publishers` and `consumers` are those it has handed out."""

    def __init__(self, broker: Broker, meter: Meter) -> None:
        self._broker = broker
        self._meter = meter
        self.publishers: list[MeteredPublisher] = []
        self.consumers: list[MeteredConsumer] = []

    @property
    def user(self) -> str | None:
        return self._broker.user

    def connections(self) -> list[ConnectionState]:
        return self._broker.connections()

    async def declare(self) -> None:
        await self._broker.declare()

    async def publisher(self) -> "MeteredPublisher":
        publisher = MeteredPublisher(await self._broker.publisher(), self._meter)
        self.publishers.append(publisher)
        return publisher

    async def consumer(self, queue: str, prefetch: int) -> "MeteredConsumer":
        consumer = MeteredConsumer(await self._broker.consumer(queue, prefetch), queue, self._meter)
        self.consumers.append(consumer)
        return consumer

    async def close(self) -> None:
        await self._broker.close()


class MeteredPublisher:
    """`domain.ports.Publisher` around another."""

    def __init__(self, publisher: Publisher, meter: Meter) -> None:
        self._publisher = publisher
        self._meter = meter
        self._exchanges: set[str] = set()

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        start = perf_counter()
        outcomes = await self._publisher.publish(messages)
        self._meter.observe(metrics.PUBLISH_DURATION, (perf_counter() - start,))
        self._meter.observe(metrics.COHORT_ITEMS, (len(messages),), "publish")
        exchanges = [message.exchange for message in messages]
        for (exchange, outcome), count in Counter(zip(exchanges, outcomes, strict=True)).items():
            if exchange not in self._exchanges:
                self._exchanges.add(exchange)
                for every in PublishOutcome:
                    self._meter.add(metrics.PUBLISHED_MESSAGES, 0, exchange, every)
            self._meter.add(metrics.PUBLISHED_MESSAGES, count, exchange, outcome)
        return outcomes

    async def ready(self) -> None:
        await self._publisher.ready()

    async def close(self) -> None:
        await self._publisher.close()


class MeteredConsumer:
    """`domain.ports.Consumer` around another.

    `last_settled`: Unix time at which a delivery was last settled, at first that of the start.
    """

    def __init__(self, consumer: Consumer, queue: str, meter: Meter) -> None:
        self._consumer = consumer
        self._meter = meter
        self.queue = queue
        self.last_settled = time.time()
        for metric in (metrics.DELIVERIES, metrics.REDELIVERIES):
            meter.add(metric, 0, queue)
        for how in ("ack", "requeue", "discard"):
            meter.add(metrics.SETTLED_DELIVERIES, 0, queue, how)

    @property
    def held(self) -> int:
        return self._consumer.held

    async def receive(self) -> list[Delivery]:
        deliveries = await self._consumer.receive()
        if deliveries:
            self._meter.add(metrics.DELIVERIES, len(deliveries), self.queue)
            if repeats := sum([delivery.redelivered for delivery in deliveries]):
                self._meter.add(metrics.REDELIVERIES, repeats, self.queue)
        return deliveries

    def alive(self, delivery: Delivery) -> bool:
        return self._consumer.alive(delivery)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._consumer.ack(deliveries)
        if deliveries:
            self._meter.observe(metrics.COHORT_ITEMS, (len(deliveries),), "ack")
            self._settled(len(deliveries), "ack")

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        await self._consumer.requeue(deliveries)
        self._settled(len(deliveries), "requeue")

    async def discard(self, deliveries: Sequence[Delivery]) -> None:
        await self._consumer.discard(deliveries)
        self._settled(len(deliveries), "discard")

    async def pause(self) -> None:
        await self._consumer.pause()

    async def resume(self) -> None:
        await self._consumer.resume()

    async def stop(self) -> None:
        await self._consumer.stop()

    async def close(self) -> None:
        await self._consumer.close()

    def _settled(self, count: int, how: str) -> None:
        self.last_settled = time.time()
        self._meter.add(metrics.SETTLED_DELIVERIES, count, self.queue, how)
