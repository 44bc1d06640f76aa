"""The publisher of events that could not be handled, to `asg.parked`."""

import asyncio
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import aio_pika
import aiormq.abc
from aio_pika.abc import AbstractChannel, AbstractConnection
from pamqp.commands import Basic

from asg_gateway._errors import BrokerRefusedError, BrokerUnavailableError
from asg_gateway.amqp._cancellation import is_cancelled
from asg_gateway.amqp._closing import closed
from asg_gateway.amqp._connection import Address, broker_errors

EXCHANGE: Final = "asg.parked"
_TIMEOUT: Final = 30.0
"""Seconds for one publish with its confirm."""
_MAX_ERROR: Final = 500
"""Characters of `x-parked-error`."""
_OF_THE_BROKER: Final = frozenset({"x-delivery-count", "x-acquired-count", "x-death"})
"""Headers that would be taken for those of the new message."""


class ParkingPublisher:
    """Publishes to the parking queue of one queue, over a connection of its own, which it opens when it needs it.

    Args:
        address: where RabbitMQ is.
        source: the name of the queue, without `.parked`.
    """

    def __init__(self, address: Address, source: str) -> None:
        self._address = address
        self._source = source
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        # aiormq finds the publish of a returned message by its message_id: two at once could be taken for each other.
        self._turn = asyncio.Lock()

    async def publish(self, message: aiormq.abc.DeliveredMessage, error: BaseException, attempts: int) -> None:
        """Publish a copy of a message, persistent, and wait for the confirm.

        Raises:
            BrokerRefusedError: the exchange or queue does not exist, or the permission is missing.
            BrokerUnavailableError: there was no confirm. It is unknown whether the copy is in the queue.
        """
        async with self._turn:
            try:
                with broker_errors(str(self._address)):
                    async with asyncio.timeout(_TIMEOUT):
                        await self._publish(parked_copy(message, error, attempts))
            except BaseException as error:
                await self.close()
                if isinstance(error, RuntimeError | asyncio.CancelledError) and not is_cancelled():
                    raise BrokerUnavailableError(f"RabbitMQ at {self._address}: the connection was lost") from error
                raise

    async def close(self) -> None:
        """Close the connection. The next publish opens another one."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            await closed(connection.close())

    async def _publish(self, message: aio_pika.Message) -> None:
        if self._channel is None or self._channel.is_closed:
            await self.close()
            self._connection = await self._address.connect(f"asg-gateway parks events of {self._source}")
            self._channel = await self._connection.channel(on_return_raises=True)
        exchange = await self._channel.get_exchange(EXCHANGE, ensure=False)
        try:
            confirm = await exchange.publish(message, self._source, mandatory=True)
        except aiormq.exceptions.PublishError as error:
            raise BrokerRefusedError(f"no queue is bound to {EXCHANGE} for {self._source}: {advice()}") from error
        if not isinstance(confirm, Basic.Ack):
            raise BrokerUnavailableError(f"RabbitMQ at {self._address} did not confirm the parked event")


def parked_copy(message: aiormq.abc.DeliveredMessage, error: BaseException, attempts: int) -> aio_pika.Message:
    """Return a copy with the same body and properties, and headers that say why it is parked."""
    properties = message.header.properties
    headers: Mapping[str, Any] = properties.headers or {}
    return aio_pika.Message(
        message.body,
        headers={
            **{name: value for name, value in headers.items() if name not in _OF_THE_BROKER},
            # An error's text may have characters that UTF-8 cannot encode, such as a lone surrogate.
            "x-parked-error": f"{type(error).__name__}: {error}"[:_MAX_ERROR].encode("utf-8", "replace").decode(),
            "x-parked-attempts": attempts,
            "x-parked-at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        # Not `expiration`, because a parked event must wait, and not `user_id`, which names the first publisher.
        # Without a message_id, aiormq does not notice that a message is returned.
        message_id=properties.message_id or uuid.uuid4().hex,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        timestamp=properties.timestamp,
        type=properties.message_type,
        app_id=properties.app_id,
        priority=properties.priority,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


def advice() -> str:
    """Return what to do if the parking queue is missing."""
    return "the operator creates it with `ingest topology apply`; or pass max_attempts=None, which retries without end"
