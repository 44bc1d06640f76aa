"""Messages on a real RabbitMQ: the largest body, and the properties that a delivery has."""

import asyncio
from collections.abc import AsyncIterator

import aio_pika
import aiormq
import msgspec
import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import MAX_MESSAGE, Message, PublishOutcome


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    broker = RabbitBroker(rabbitmq_url, confirm_timeout=2.0)
    await broker.declare()
    yield broker
    await broker.close()


def message(number: int = 0, key: str = "task.submitted.c") -> Message:
    return Message(exchange=topology.SUBMISSIONS, routing_key=key, body=b"%d" % number, message_id=f"m{number}")


async def test_message_above_16_mib_closes_the_channel(rabbitmq_url: str) -> None:
    """The configuration in deploy/ sets this limit."""
    connection = await aio_pika.connect(rabbitmq_url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("large", aio_pika.ExchangeType.TOPIC)
        await asyncio.wait_for(exchange.publish(aio_pika.Message(bytes(MAX_MESSAGE)), "x", mandatory=False), 20)
        too_large = aio_pika.Message(bytes(MAX_MESSAGE + 1))
        with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed, match="larger than configured max size"):
            await asyncio.wait_for(exchange.publish(too_large, "x", mandatory=False), 20)


async def test_publisher_refuses_a_message_above_16_mib_and_confirms_its_neighbours(broker: RabbitBroker) -> None:
    """The channel stays open, however often the message is tried again."""
    publisher = await broker.publisher()
    too_large = msgspec.structs.replace(message(2), body=bytes(MAX_MESSAGE + 1))
    for _ in range(3):
        outcomes = await publisher.publish([message(1), too_large, message(3)])
        assert outcomes == [PublishOutcome.CONFIRMED, PublishOutcome.TOO_LARGE, PublishOutcome.CONFIRMED]
    assert [state.reconnects for state in broker.connections()] == [0]


async def test_delivery_has_the_properties_that_a_producer_set(broker: RabbitBroker, rabbitmq_url: str) -> None:
    connection = await aio_pika.connect(rabbitmq_url)
    async with connection, connection.channel() as channel:
        message = aio_pika.Message(
            b"{}", message_id="m", content_type="text/plain", content_encoding="gzip", timestamp=1_775_000_000
        )
        exchange = await channel.get_exchange(topology.SUBMISSIONS)
        await exchange.publish(message, "task.submitted.c")
    consumer = await broker.consumer(topology.INGEST_TASKS, 1)
    (delivery,) = await asyncio.wait_for(consumer.receive(), 10)
    assert (delivery.message_id, delivery.content_type, delivery.content_encoding, delivery.timestamp) == (
        "m",
        "text/plain",
        "gzip",
        1_775_000_000,
    )
    await consumer.close()
