"""A subscription to one queue that survives the loss of its connection."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import aiormq.abc
import aiormq.exceptions
from aio_pika.abc import AbstractConnection

from asg_gateway._errors import ASGGatewayError, BrokerRefusedError
from asg_gateway.amqp._connection import Address, Backoff, broker_errors
from asg_gateway.amqp._deliveries import earlier_deliveries
from asg_gateway.amqp._parking import ParkingPublisher

_TIMEOUT: Final = 10.0
"""Seconds for an answer of the broker."""

log = logging.getLogger("asg_gateway.amqp")


class RabbitDelivery:
    """A message that one channel holds."""

    def __init__(self, message: aiormq.abc.DeliveredMessage, session: "_Session", parking: ParkingPublisher | None):
        self._message = message
        self._session = session
        self._parking = parking
        self.body = message.body
        self.earlier_deliveries = earlier_deliveries(message.header.properties.headers or {}, session.version)

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


Receive = Callable[[RabbitDelivery], Awaitable[None]]


class Subscription:
    """Consumes a queue, and connects again whenever the connection is lost. Use `run`, then `close`.

    Args:
        address: where RabbitMQ is.
        queue: the name of the queue.
        prefetch: the most messages that are held.
        receive: called for each message.
        backoff: the pauses between attempts to connect.
        cautious: hold one message at first, because it may crash the process; `ended` says when more may be held.
        parking: parks messages, or None.
        advice: what to do if the queue does not exist.
        required: (name, advice) of further queues that must exist at the first connection, if RabbitMQ tells the user.
    """

    def __init__(
        self,
        address: Address,
        queue: str,
        prefetch: int,
        receive: Receive,
        *,
        backoff: Backoff,
        cautious: bool = False,
        parking: ParkingPublisher | None = None,
        advice: str = "check its name",
        required: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._address = address
        self._queue = queue
        self._prefetch = prefetch
        self._receive = receive
        self._backoff = backoff
        self._first_prefetch = 1 if cautious else prefetch
        self._parking = parking
        self._advice = advice
        self._required = required
        self._session: _Session | None = None
        self.connected = asyncio.Event()
        """Set after the first connection."""

    async def run(self) -> None:
        """Stay subscribed until the task is cancelled.

        Raises:
            BrokerRefusedError: at the first connection, RabbitMQ refuses the login or a permission, or a queue does not
                exist. Later, this is logged and tried again.
        """
        while True:
            try:
                session = await self._open()
            except ASGGatewayError as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError from None  # aiormq raises its own error if both happen at once
                if isinstance(error, BrokerRefusedError) and not self.connected.is_set():
                    raise
                log.warning("broker_unavailable queue=%s error=%s", self._queue, error)
            else:
                log.info("subscribed queue=%s address=%s", self._queue, self._address)
                self._backoff.reset()
                self.connected.set()
                await session.lost.wait()
                log.warning("subscription_lost queue=%s reason=%s", self._queue, session.reason)
                await session.close()
            await asyncio.sleep(self._backoff.next())

    def ended(self, finished: bool, suspect: bool) -> None:
        """Take note that an attempt at a message has ended, and hold more messages if that is safe now."""
        if self._session is not None:
            self._session.ended(finished, suspect)

    async def close(self) -> None:
        """Close the connection. What is not acknowledged is delivered again, to any consumer."""
        if self._session is not None:
            await self._session.close()

    async def _open(self) -> "_Session":
        where = str(self._address)
        connection = await self._address.connect(f"asg-gateway consumes {self._queue}")
        try:
            with broker_errors(where):
                async with asyncio.timeout(_TIMEOUT):
                    if not self.connected.is_set():
                        await self._check_queues(connection, where)
                    session = await _Session.open(connection, self._queue, self._prefetch, self._deliver)
                    self._session = session  # the first message may arrive before `consume` returns
                    try:
                        await session.consume(self._first_prefetch)
                    except aiormq.exceptions.ChannelNotFoundEntity as error:
                        raise _missing(self._queue, where, self._advice) from error
                    return session
        except BaseException:
            await _closed(connection)
            raise

    async def _check_queues(self, connection: AbstractConnection, where: str) -> None:
        for queue, advice in [(self._queue, self._advice), *self._required]:
            channel = await connection.channel()
            try:
                await channel.get_queue(queue)
            except aiormq.exceptions.ChannelAccessRefused:
                # From RabbitMQ 4.3 on, the question needs the permission to delete the queue, which a user should lack.
                log.info("queue_not_checked queue=%s", queue)
            except aiormq.exceptions.ChannelNotFoundEntity as error:
                raise _missing(queue, where, advice) from error
            else:
                await channel.close()

    async def _deliver(self, session: "_Session", message: aiormq.abc.DeliveredMessage) -> None:
        if not session.lost.is_set():
            await self._receive(RabbitDelivery(message, session, self._parking))


class _Session:
    """One connection with one channel that consumes a queue."""

    def __init__(
        self,
        connection: AbstractConnection,
        channel: aiormq.abc.AbstractChannel,
        queue: str,
        prefetch: int,
        deliver: Callable[["_Session", aiormq.abc.DeliveredMessage], Awaitable[None]],
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
        deliver: Callable[["_Session", aiormq.abc.DeliveredMessage], Awaitable[None]],
    ) -> "_Session":
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
            await self._channel.basic_qos(prefetch_count=more, timeout=_TIMEOUT)
            await self._channel.basic_consume(self._queue, self._on_message, timeout=_TIMEOUT)

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
        for task in self._raising:
            task.cancel()
        await _closed(self._connection)
        self.lost.set()

    async def _raise_prefetch(self, more: int) -> None:
        try:
            await self.consume(more)
        except (aiormq.exceptions.AMQPError, OSError, TimeoutError) as error:
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


def _missing(queue: str, where: str, advice: str) -> BrokerRefusedError:
    return BrokerRefusedError(f"RabbitMQ at {where}: the queue {queue} does not exist: {advice}")


async def _closed(connection: AbstractConnection) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_TIMEOUT):
            await connection.close()
