"""The exchange and queues that consumers of the SDK need, in an empty virtual host."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from asg_gateway.amqp import Event
from asg_gateway.amqp.testing import encode

QUEUES: Final = ("consensus.tasks", "webhook.dispatch")
_QUORUM: Final[dict[str, Any]] = {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}


@dataclass
class Broker:
    """A connection for a test."""

    connection: AbstractConnection
    channel: AbstractChannel

    async def publish(self, queue: str, *events: Event | bytes, **properties: Any) -> None:
        """Publish events, or bodies of messages, to a queue, as the service does."""
        for event in events:
            body = event if isinstance(event, bytes) else encode(event)
            defaults = {"message_id": "raw" if isinstance(event, bytes) else event.id}
            message = aio_pika.Message(
                body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **{**defaults, **properties}
            )
            await self.channel.default_exchange.publish(message, queue)

    async def count(self, queue: str) -> int:
        """Return how many messages of a queue no consumer holds."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def take(self, queue: str) -> AbstractIncomingMessage | None:
        """Take one message from a queue."""
        return await (await self.channel.get_queue(queue)).get(no_ack=True, fail=False)


@asynccontextmanager
async def declared(url: str, queues: Sequence[str] = QUEUES, *, parking: bool = True) -> AsyncIterator[Broker]:
    """Declare queues, and unless `parking` is False also `asg.parked` and their parking queues."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        for name in queues:
            await channel.declare_queue(name, durable=True, arguments=_QUORUM)
        if parking:
            exchange = await channel.declare_exchange("asg.parked", aio_pika.ExchangeType.TOPIC, durable=True)
            for name in queues:
                queue = await channel.declare_queue(f"{name}.parked", durable=True, arguments=_QUORUM)
                await queue.bind(exchange, name)
        yield Broker(connection, channel)
