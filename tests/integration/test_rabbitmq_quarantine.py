"""How a consumer on RabbitMQ quarantines suspect deliveries, and returns to its whole prefetch after that."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import PublishOutcome
from tests.contract.test_broker import take
from tests.integration.test_rabbitmq import message

_COUNT = 300


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    yield broker
    await broker.close()


async def _publish(broker: RabbitBroker, count: int, pause: float = 0.0) -> None:
    """Publish messages one by one, with random pauses of at most `pause` seconds."""
    publisher = await broker.publisher()
    for number in range(count):
        assert await publisher.publish([message(number)]) == [PublishOutcome.CONFIRMED]
        await asyncio.sleep(random.uniform(0, pause))


async def test_deliveries_that_came_back_twice_are_handed_out_one_at_a_time(broker: RabbitBroker) -> None:
    """Two consumers were closed while they held 20 deliveries, so all 20 are suspects, harmless or not."""
    publisher = await broker.publisher()
    await publisher.publish([message(i) for i in range(20)])
    for _ in range(2):
        closed = await broker.consumer(topology.INGEST_TASKS, 50)
        await take(closed, 20)
        await closed.close()
    await publisher.publish([message(i) for i in range(20, 60)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 50)
    received: list[tuple[int, int]] = []
    async with asyncio.timeout(30):
        while len(received) < 60:
            deliveries = await consumer.receive()
            if any(delivery.deliveries >= 2 for delivery in deliveries):
                assert len(deliveries) == 1
            await asyncio.sleep(0.01)  # gives other deliveries time to arrive, if they are not withheld
            received += [(int(delivery.body), delivery.deliveries) for delivery in deliveries]
            await consumer.ack(deliveries)
    assert sorted(number for number, _ in received) == list(range(60))
    assert {number for number, count in received if count >= 2} == set(range(20))
    # The quarantine has ended, so the consumer holds several deliveries again.
    await publisher.publish([message(i) for i in range(60, 70)])
    assert len(await take(consumer, 10)) == 10


@pytest.mark.parametrize("remainder", range(3))
async def test_every_message_is_delivered_while_suspects_are_requeued(broker: RabbitBroker, remainder: int) -> None:
    """Every 15th message is requeued twice under traffic; the consumer keeps its connection."""
    consumer = await broker.consumer(topology.INGEST_TASKS, 20)
    publishing = asyncio.create_task(_publish(broker, _COUNT, pause=0.004))
    requeues: Counter[bytes] = Counter()
    finished: set[bytes] = set()
    async with asyncio.timeout(40):
        while len(finished) < _COUNT:
            for delivery in await consumer.receive():
                if int(delivery.body) % 15 == remainder and requeues[delivery.body] < 2:
                    requeues[delivery.body] += 1
                    await consumer.requeue([delivery])
                else:
                    finished.add(delivery.body)
                    await consumer.ack([delivery])
    await publishing
    assert sum(state.reconnects for state in broker.connections()) == 0


async def test_resumed_consumer_holds_one_delivery_until_it_is_acknowledged(broker: RabbitBroker) -> None:
    """If the outage continues, the next pause returns a single delivery. After an ack, the whole prefetch is used."""
    consumer = await broker.consumer(topology.INGEST_TASKS, 20)
    await _publish(broker, 30)
    async with asyncio.timeout(20):
        await take(consumer, 20)
        await consumer.pause()
        await consumer.resume()
        (delivery,) = await consumer.receive()
        await asyncio.sleep(0.5)  # gives further deliveries time to arrive, if the prefetch is not 1
        assert consumer.held == 1
        await consumer.ack([delivery])
        await take(consumer, 20)
        assert consumer.held == 20
