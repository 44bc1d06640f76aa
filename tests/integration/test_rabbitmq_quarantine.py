"""How a consumer on RabbitMQ isolates suspects and widens, and that nothing is left behind where it does."""

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
    opened = RabbitBroker(rabbitmq_url)
    await opened.declare()
    yield opened
    await opened.close()


async def _publish(broker: RabbitBroker, count: int, pause: float = 0.0) -> None:
    publisher = await broker.publisher()
    for number in range(count):
        assert await publisher.publish([message(number)]) == [PublishOutcome.CONFIRMED]
        await asyncio.sleep(random.uniform(0, pause))


@pytest.mark.parametrize("round_", range(3))
async def test_suspects_leave_nothing_behind(broker: RabbitBroker, round_: int) -> None:
    """While suspects come and go under traffic, everything comes, on one connection."""
    consumer = await broker.consumer(topology.INGEST_TASKS, 20)
    publishing = asyncio.create_task(_publish(broker, _COUNT, pause=0.004))
    returned: Counter[bytes] = Counter()
    finished: set[bytes] = set()
    async with asyncio.timeout(40):
        while len(finished) < _COUNT:
            for delivery in await consumer.receive():
                if int(delivery.body) % 15 == round_ and returned[delivery.body] < 2:
                    returned[delivery.body] += 1
                    await consumer.requeue([delivery])
                else:
                    finished.add(delivery.body)
                    await consumer.ack([delivery])
    await publishing
    assert sum(state.reconnects for state in broker.connections()) == 0


async def test_after_a_pause_one_at_a_time_until_one_is_settled(broker: RabbitBroker) -> None:
    """An outage that is not over costs one delivery when the next pause gives back what is held; once it is over, the
    consumer takes its whole prefetch again."""
    consumer = await broker.consumer(topology.INGEST_TASKS, 20)
    await _publish(broker, 30)
    async with asyncio.timeout(20):
        await take(consumer, 20)
        await consumer.pause()
        await consumer.resume()
        (one,) = await consumer.receive()
        await asyncio.sleep(0.5)
        assert consumer.held == 1
        await consumer.ack([one])
        await take(consumer, 20)
        assert consumer.held == 20
