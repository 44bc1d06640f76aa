"""Decorators that measure publishers and consumers."""

import time
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from ingest.broker.decorators import BrokerDecorator, ConsumerDecorator, PublisherDecorator
from ingest.domain import metrics
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.metrics import Meter
from ingest.domain.ports import Broker, Consumer, Publisher
from ingest.domain.topology import label_of


class MeteredBroker(BrokerDecorator):
    """Measures a broker. `publishers` and `consumers` are those that it has made."""

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
        self.consumers = [consumer for consumer in self.consumers if not consumer.is_closed]
        consumer = MeteredConsumer(await self._broker.consumer(queue, prefetch), queue, self._meter)
        self.consumers.append(consumer)
        return consumer


class MeteredPublisher(PublisherDecorator):
    """Measures a publisher."""

    def __init__(self, publisher: Publisher, meter: Meter) -> None:
        super().__init__(publisher)
        self._meter = meter
        self._exchanges: set[str] = set()

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        if not self._meter.on:
            return await self._publisher.publish(messages)
        start = perf_counter()
        outcomes = await self._publisher.publish(messages)
        self._meter.observe(metrics.PUBLISH_DURATION, (perf_counter() - start,))
        self._meter.observe(metrics.MICRO_BATCH_ITEMS, (len(messages),), "publish")
        exchanges = [message.exchange for message in messages]
        for (exchange, outcome), count in Counter(zip(exchanges, outcomes, strict=True)).items():
            if exchange not in self._exchanges:
                self._exchanges.add(exchange)
                for possible in PublishOutcome:
                    self._meter.add(metrics.PUBLISHED_MESSAGES, 0, exchange, possible)
            self._meter.add(metrics.PUBLISHED_MESSAGES, count, exchange, outcome)
        return outcomes


class MeteredConsumer(ConsumerDecorator):
    """Measures a consumer.

    `last_finished` is the Unix time at which a delivery was last finished, at first the start.
    """

    def __init__(self, consumer: Consumer, queue: str, meter: Meter) -> None:
        super().__init__(consumer)
        self._meter = meter
        self.queue = queue
        self.label = label_of(queue)
        self.is_closed = False
        self.last_finished = time.time()
        for metric in (metrics.DELIVERIES, metrics.REDELIVERIES):
            meter.add(metric, 0, self.label)
        for how in ("ack", "requeue"):
            meter.add(metrics.SETTLED_DELIVERIES, 0, self.label, how)

    async def receive(self) -> list[Delivery]:
        deliveries = await self._consumer.receive()
        if deliveries:
            self._meter.add(metrics.DELIVERIES, len(deliveries), self.label)
            if redeliveries := sum([delivery.redelivered for delivery in deliveries]):
                self._meter.add(metrics.REDELIVERIES, redeliveries, self.label)
        return deliveries

    async def close(self) -> None:
        self.is_closed = True
        await super().close()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._consumer.ack(deliveries)
        if deliveries:
            self._meter.observe(metrics.MICRO_BATCH_ITEMS, (len(deliveries),), "ack")
            self._record_finished(len(deliveries), "ack")

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        await self._consumer.requeue(deliveries)
        self._record_finished(len(deliveries), "requeue")

    def _record_finished(self, count: int, how: str) -> None:
        self.last_finished = time.time()
        self._meter.add(metrics.SETTLED_DELIVERIES, count, self.label, how)
