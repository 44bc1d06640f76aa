"""A subscription to one queue that survives the loss of its connection."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import aiormq.abc
import aiormq.exceptions
from aio_pika.abc import AbstractConnection

from asg_gateway._backoff import Backoff
from asg_gateway._errors import ASGGatewayError, BrokerRefusedError
from asg_gateway.amqp._cancellation import is_cancelled
from asg_gateway.amqp._closing import closed
from asg_gateway.amqp._connection import Address, broker_errors
from asg_gateway.amqp._consuming.parking import ParkingPublisher
from asg_gateway.amqp._consuming.session import TIMEOUT, RabbitDelivery, Session

log = logging.getLogger("asg_gateway.amqp")


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
        parked_pause: seconds after the parking of a message before it should be handled.
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
        parked_pause: float = 0.0,
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
        self._parked_pause = parked_pause
        self._advice = advice
        self._required = required
        self._session: Session | None = None
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
            except (ASGGatewayError, RuntimeError, ValueError, asyncio.CancelledError) as error:
                # aiormq raises the last three, too, if the connection breaks at the same moment.
                if is_cancelled():
                    raise asyncio.CancelledError from None
                if isinstance(error, BrokerRefusedError) and not self.connected.is_set():
                    raise
                log.warning("broker_unavailable queue=%s error=%s", self._queue, str(error) or type(error).__name__)
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

    async def _open(self) -> Session:
        where = str(self._address)
        connection = await self._address.connect(f"asg-gateway consumes {self._queue}")
        try:
            with broker_errors(where):
                async with asyncio.timeout(TIMEOUT):
                    if not self.connected.is_set():
                        await self._check_queues(connection, where)
                    session = await Session.open(connection, self._queue, self._prefetch, self._deliver)
                    self._session = session  # the first message may arrive before `consume` returns
                    try:
                        await session.consume(self._first_prefetch)
                    except aiormq.exceptions.ChannelNotFoundEntity as error:
                        raise _missing(self._queue, where, self._advice) from error
                    return session
        except BaseException:
            await closed(connection.close())
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

    async def _deliver(self, session: Session, message: aiormq.abc.DeliveredMessage) -> None:
        if not session.lost.is_set():
            await self._receive(RabbitDelivery(message, session, self._parking, self._parked_pause))


def _missing(queue: str, where: str, advice: str) -> BrokerRefusedError:
    return BrokerRefusedError(f"RabbitMQ at {where}: the queue {queue} does not exist: {advice}")
