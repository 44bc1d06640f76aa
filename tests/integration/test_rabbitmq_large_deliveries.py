"""A consumer holds a limited number of bytes, whatever its prefetch is; tested with messages of 6 MiB."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Consumer

BODY = b"x" * (6 * 1024 * 1024)


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    """The heartbeat fails after 6 s of silence."""
    broker = RabbitBroker(rabbitmq_url, heartbeat=1, confirm_timeout=20)
    await broker.declare()
    yield broker
    await broker.close()


async def publish(broker: RabbitBroker, count: int) -> None:
    publisher = await broker.publisher()
    for number in range(count):
        message = Message(
            exchange=topology.SUBMISSIONS, routing_key="task.submitted.c", body=BODY, message_id=f"m{number}"
        )
        assert await publisher.publish([message]) == [PublishOutcome.CONFIRMED]
    await publisher.close()


async def receive_until_quiet(consumer: Consumer, seconds: float = 1.5) -> list[Delivery]:
    """Receive until nothing arrives for so long, or the consumer has stopped."""
    deliveries: list[Delivery] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds) as quiet:
            while received := await consumer.receive():
                deliveries += received
                quiet.reschedule(asyncio.get_running_loop().time() + seconds)
    return deliveries


def names(deliveries: list[Delivery]) -> list[str | None]:
    return [delivery.message_id for delivery in deliveries]


async def test_deliveries_beyond_the_limit_of_bytes_arrive_after_acks(broker: RabbitBroker) -> None:
    """Neither the broker nor the client closes the connection, however long that takes."""
    await publish(broker, 8)
    consumer = await broker.consumer(topology.INGEST_TASKS, 100)
    first = await receive_until_quiet(consumer, 8)
    assert names(first) == ["m0", "m1", "m2"]
    await consumer.ack(first[:1])
    second = await receive_until_quiet(consumer)
    assert names(second) == ["m3"]
    await consumer.ack([*first[1:], *second])
    third = await receive_until_quiet(consumer)
    assert names(third) == ["m4", "m5", "m6"]
    await consumer.ack(third)
    assert names(await receive_until_quiet(consumer)) == ["m7"]
    assert [state.reconnects for state in broker.connections() if state.name.startswith("consume")] == [0]


async def test_deliveries_that_are_set_apart_do_not_count(broker: RabbitBroker) -> None:
    """The extra prefetch is raised as soon as the broker's answer can be read."""
    await publish(broker, 6)
    consumer = await broker.consumer(topology.INGEST_TASKS, 4)
    first = await receive_until_quiet(consumer)
    await consumer.set_apart(first[:1], 1)
    assert names(await receive_until_quiet(consumer)) == ["m3"]
    await consumer.set_apart(first, 3)
    assert names(await receive_until_quiet(consumer)) == ["m4", "m5"]
    assert consumer.held == 6


async def test_consumer_that_does_not_read_can_stop_and_close(broker: RabbitBroker) -> None:
    """What it holds can be finished; what it has not read returns to the queue."""
    await publish(broker, 5)
    consumer = await broker.consumer(topology.INGEST_TASKS, 4)
    first = await receive_until_quiet(consumer)
    stopping = asyncio.create_task(consumer.stop())
    await consumer.ack(first)
    await stopping
    # m4 is delivered, too, if the broker sees the acknowledgement before the end of the consumer.
    assert names(await receive_until_quiet(consumer)) in (["m3"], ["m3", "m4"])
    await consumer.close()
    other = await broker.consumer(topology.INGEST_TASKS, 4)
    assert len(await receive_until_quiet(other)) == 2
    async with asyncio.timeout(5):
        await other.close()


async def test_consumer_that_does_not_read_closes_its_connection_at_once(broker: RabbitBroker) -> None:
    await publish(broker, 6)
    consumer = await broker.consumer(topology.INGEST_TASKS, 100)
    assert len(await receive_until_quiet(consumer)) == 3
    async with asyncio.timeout(5):
        await consumer.close()
    other = await broker.consumer(topology.INGEST_TASKS, 100)
    assert names(await receive_until_quiet(other)) == ["m0", "m1", "m2"]
