"""One connection with one channel that consumes a queue, and the messages that it holds."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import aiormq.abc
import aiormq.exceptions
from aio_pika.abc import AbstractConnection

from asg_gateway._errors import BrokerRefusedError
from asg_gateway.amqp._closing import closed
from asg_gateway.amqp._consuming.deliveries import earlier_deliveries, remaining_pause
from asg_gateway.amqp._consuming.parking import ParkingPublisher

TIMEOUT: Final = 10.0
"""Seconds for an answer of the broker."""


class RabbitDelivery:
    """A message that one channel holds."""

    def __init__(
        self,
        message: aiormq.abc.DeliveredMessage,
        session: "Session",
        parking: ParkingPublisher | None,
        parked_pause: float,
    ) -> None:
        self._message = message
        self._session = session
        self._parking = parking
        self.body = message.body
        headers = message.header.properties.headers or {}
        self.earlier_deliveries = earlier_deliveries(headers, session.version)
        self.wait = remaining_pause(headers.get("x-parked-at"), parked_pause, time.time())

    @property
    def message_id(self) -> str | None:
        """The AMQP property."""
        return self._message.header.properties.message_id

    @property
    def alive(self) -> bool:
        """Whether its channel is open."""
        return not self._session.lost.is_set()

    async def ack(self) -> bool:
        """Acknowledge it; return whether its channel was open."""
        return await self._session.ack(self._message.delivery_tag or 0)

    async def park(self, error: BaseException, attempts: int) -> None:
        """Publish a copy to the parking queue. Raises BrokerRefusedError, BrokerUnavailableError."""
        if self._parking is None:
            raise BrokerRefusedError("this subscription parks nothing")
        await self._parking.publish(self._message, error, attempts)


class Session:
    """One connection with one channel that consumes a queue."""

    def __init__(
        self,
        connection: AbstractConnection,
        channel: aiormq.abc.AbstractChannel,
        queue: str,
        prefetch: int,
        deliver: Callable[["Session", aiormq.abc.DeliveredMessage], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._queue = queue
        self._prefetch = prefetch
        self._deliver = deliver
        self._current_prefetch = 0
        self._raising: set[asyncio.Task[None]] = set()
        self._qos = asyncio.Lock()
        self.lost = asyncio.Event()
        self.reason = "closed"
        version = channel.connection.server_properties.get("version", "")
        self.version = version.decode(errors="replace") if isinstance(version, bytes) else str(version)

    @classmethod
    async def open(
        cls,
        connection: AbstractConnection,
        queue: str,
        prefetch: int,
        deliver: Callable[["Session", aiormq.abc.DeliveredMessage], Awaitable[None]],
    ) -> "Session":
        channel = await connection.channel(publisher_confirms=False)
        underlay = await channel.get_underlay_channel()
        session = cls(connection, underlay, queue, prefetch, deliver)
        underlay.closing.add_done_callback(session._on_closed)
        underlay.connection.closing.add_done_callback(session._on_closed)
        underlay.on_consumer_cancel_callbacks.add(session._on_cancelled)
        return session

    async def consume(self, more: int) -> None:
        """Hold more messages, with one more consumer: the prefetch of a consumer cannot be changed."""
        self._current_prefetch += more
        async with self._qos:
            await self._channel.basic_qos(prefetch_count=more, timeout=TIMEOUT)
            await self._channel.basic_consume(self._queue, self._on_message, timeout=TIMEOUT)

    def ended(self, finished: bool, suspect: bool) -> None:
        room = self._prefetch - self._current_prefetch
        if room <= 0 or self.lost.is_set() or (finished and suspect):
            return
        task = asyncio.create_task(self._raise_prefetch(room if finished else 1))
        self._raising.add(task)
        task.add_done_callback(self._raising.discard)

    async def ack(self, tag: int) -> bool:
        if self.lost.is_set():
            return False
        try:
            await self._channel.basic_ack(tag, wait=False)
        except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
            self._lose(error)
            return False
        return True

    async def close(self) -> None:
        """Send what was acknowledged, and close."""
        raising = [*self._raising]
        for task in raising:
            task.cancel()
        await asyncio.gather(*raising, return_exceptions=True)  # or the end of the event loop would report them
        await closed(self._connection.close())
        self.lost.set()

    async def _raise_prefetch(self, more: int) -> None:
        try:
            await self.consume(more)
        except (aiormq.exceptions.AMQPError, OSError, TimeoutError, RuntimeError) as error:
            self._lose(error)

    async def _on_message(self, message: aiormq.abc.DeliveredMessage) -> None:
        await self._deliver(self, message)

    def _on_closed(self, closing: "asyncio.Future[object]") -> None:
        self._lose(None if closing.cancelled() else closing.exception())

    def _on_cancelled(self, frame: object) -> None:
        # The queue was deleted, or a message was held too long. The channel may hold messages that nothing consumes.
        self._lose(RuntimeError("RabbitMQ has cancelled the consumer"))

    def _lose(self, error: BaseException | None) -> None:
        if not self.lost.is_set():
            self.reason = "closed" if error is None else str(error) or type(error).__name__
            self.lost.set()
