"""How a consumer on RabbitMQ narrows and widens, and that nothing is left behind where it does."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from ingest.broker.rabbitmq import RabbitBroker
from ingest.broker.rabbitmq_suspects import PATIENCE
from ingest.domain import topology
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.ports import Consumer
from tests.integration.test_rabbitmq import message

_COUNT = 300


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    opened = RabbitBroker(rabbitmq_url)
    await opened.declare()
    yield opened
    await opened.close()


async def _publish(broker: RabbitBroker, count: int, pause: float = 0.0) -> None:
    publisher = await broker.publisher()
    for number in range(count):
        assert await publisher.publish([message(number)]) == [PublishOutcome.CONFIRMED]
        await asyncio.sleep(random.uniform(0, pause))


async def _receive(consumer: Consumer, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    while len(got) < count:
        got += await consumer.receive()
    return got


@pytest.mark.parametrize("round_", range(3))
async def test_narrowing_and_widening_leave_nothing_behind(broker: RabbitBroker, round_: int) -> None:
    """While suspects make the consumer narrow and wide again and again under traffic, everything comes."""
    consumer = await broker.consumer(topology.INGEST_TASKS, 20)
    publishing = asyncio.create_task(_publish(broker, _COUNT, pause=0.004))
    returned: Counter[bytes] = Counter()
    finished: set[bytes] = set()
    async with asyncio.timeout(40):
        while len(finished) < _COUNT:
            for delivery in await consumer.receive():
                if not consumer.alive(delivery):
                    continue
                if int(delivery.body) % 15 == round_ and returned[delivery.body] < 2:
                    returned[delivery.body] += 1
                    await consumer.requeue([delivery])
                else:
                    finished.add(delivery.body)
                    await consumer.ack([delivery])
    await publishing
    assert sum(state.reconnects for state in broker.connections()) == 0


async def test_a_narrowing_that_gets_nowhere_gives_all_back(broker: RabbitBroker) -> None:
    """What a cancelled consumer holds would be lost with its node: while nothing can be settled the consumer holds one
    delivery, and is not cancelled."""
    consumer = await broker.consumer(topology.INGEST_TASKS, 20)
    await _publish(broker, 5)
    async with asyncio.timeout(PATIENCE + 20):
        for _ in range(2):
            await consumer.requeue(await _receive(consumer, 5))
        # Suspects now: the first is handed out, and not settled.
        (first,) = await consumer.receive()
        assert consumer.held == 5
        while consumer.alive(first):
            await asyncio.sleep(0.1)
        (again,) = await consumer.receive()
        assert consumer.held == 1
        await consumer.ack([again])
        for _ in range(4):
            await consumer.ack(await _receive(consumer, 1))
