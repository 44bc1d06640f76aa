"""What a direct producer can set on its messages: none of it may affect other customers or the service."""

from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from tests.contract.test_broker import take
from tests.servers import RabbitServer

CUSTOMER = "acme"
KEY = f"task.submitted.{CUSTOMER}"


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    yield broker
    await broker.close()


@pytest.fixture
async def exchange(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> AsyncIterator[aio_pika.abc.AbstractExchange]:
    """The exchange for submissions, as the direct producer `acme` sees it."""
    vhost = rabbitmq_url.rpartition("/")[2]
    rabbitmq.api("PUT", f"users/{CUSTOMER}", {"password": "pw", "tags": ""})
    permissions = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
    rabbitmq.api("PUT", f"permissions/{vhost}/{CUSTOMER}", permissions)
    topic = {"exchange": topology.SUBMISSIONS, "write": r"^(task|batch)\.submitted\.{username}$", "read": "^$"}
    rabbitmq.api("PUT", f"topic-permissions/{vhost}/{CUSTOMER}", topic)
    connection = await aio_pika.connect(rabbitmq_url.replace("guest:guest", f"{CUSTOMER}:pw"))
    async with connection, connection.channel(on_return_raises=True) as channel:
        yield await channel.get_exchange(topology.SUBMISSIONS, ensure=False)


def submission(message_id: str, body: bytes = b"{}", **properties: Any) -> aio_pika.Message:
    return aio_pika.Message(body, message_id=message_id, user_id=CUSTOMER, **properties)


async def test_delivery_counts_that_a_producer_forged_are_ignored(
    broker: RabbitBroker, exchange: aio_pika.abc.AbstractExchange
) -> None:
    """Otherwise its messages would start the quarantine, which delays all others, whenever a worker restarts."""
    forged = {"x-delivery-count": 15, "x-acquired-count": 15}
    await exchange.publish(submission("forged", headers=forged), KEY)
    await exchange.publish(submission("plain"), KEY)
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    assert [delivery.deliveries for delivery in await take(consumer, 2)] == [0, 0]
    await consumer.close()
    redelivered = await take(await broker.consumer(topology.INGEST_TASKS, 10), 2)
    assert {delivery.message_id: delivery.deliveries for delivery in redelivered} == {"forged": 1, "plain": 1}
