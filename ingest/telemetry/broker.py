"""A broker whose publishers and consumers are counted and timed."""

import time
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from ingest.domain import metrics
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.metrics import Meter
from ingest.domain.ports import Broker, Consumer, Publisher
from ingest.telemetry.decorators import BrokerDecorator, ConsumerDecorator, PublisherDecorator


class MeteredBroker(BrokerDecorator):
    """`domain.ports.Broker` around another. `publishers` and `consumers` are those it has handed out."""

    def __init__(self, broker: Broker, meter: Meter) -> None:
        super().__init__(broker)
        self._meter = meter
        self.publishers: list[MeteredPublisher] = []
        self.consumers: list[MeteredConsumer] = []

    async def publisher(self, connections: int = 1) -> "MeteredPublisher":
        publisher = MeteredPublisher(await self._broker.publisher(connections), self._meter)
        self.publishers.append(publisher)
        return publisher

    async def consumer(self, queue: str, prefetch: int) -> "MeteredConsumer":
        consumer = MeteredConsumer(await self._broker.consumer(queue, prefetch), queue, self._meter)
        self.consumers.append(consumer)
        return consumer


class MeteredPublisher(PublisherDecorator):
    """`domain.ports.Publisher` around another."""

    def __init__(self, publisher: Publisher, meter: Meter) -> None:
        super().__init__(publisher)
        self._meter = meter
        self._exchanges: set[str] = set()

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        start = perf_counter()
        outcomes = await self._publisher.publish(messages)
        self._meter.observe(metrics.PUBLISH_DURATION, (perf_counter() - start,))
        self._meter.observe(metrics.MICRO_BATCH_ITEMS, (len(messages),), "publish")
        exchanges = [message.exchange for message in messages]
        for (exchange, outcome), count in Counter(zip(exchanges, outcomes, strict=True)).items():
            if exchange not in self._exchanges:
                self._exchanges.add(exchange)
                for every in PublishOutcome:
                    self._meter.add(metrics.PUBLISHED_MESSAGES, 0, exchange, every)
            self._meter.add(metrics.PUBLISHED_MESSAGES, count, exchange, outcome)
        return outcomes


class MeteredConsumer(ConsumerDecorator):
    """`domain.ports.Consumer` around another.

    `last_settled`: Unix time at which a delivery was last settled, at first that of the start.
    """

    def __init__(self, consumer: Consumer, queue: str, meter: Meter) -> None:
        super().__init__(consumer)
        self._meter = meter
        self.queue = queue
        self.last_settled = time.time()
        for metric in (metrics.DELIVERIES, metrics.REDELIVERIES):
            meter.add(metric, 0, queue)
        for how in ("ack", "requeue"):
            meter.add(metrics.SETTLED_DELIVERIES, 0, queue, how)

    async def receive(self) -> list[Delivery]:
        deliveries = await self._consumer.receive()
        if deliveries:
            self._meter.add(metrics.DELIVERIES, len(deliveries), self.queue)
            if repeats := sum([delivery.redelivered for delivery in deliveries]):
                self._meter.add(metrics.REDELIVERIES, repeats, self.queue)
        return deliveries

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._consumer.ack(deliveries)
        if deliveries:
            self._meter.observe(metrics.MICRO_BATCH_ITEMS, (len(deliveries),), "ack")
            self._settled(len(deliveries), "ack")

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        await self._consumer.requeue(deliveries)
        self._settled(len(deliveries), "requeue")

    def _settled(self, count: int, how: str) -> None:
        self.last_settled = time.time()
        self._meter.add(metrics.SETTLED_DELIVERIES, count, self.queue, how)
