"""Consuming from RabbitMQ on a connection that is replaced when it is lost: deliveries as lists."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Final

from ingest.broker.rabbitmq.amqp.connection import Connection
from ingest.broker.rabbitmq.amqp.reconnecting import ReconnectingChannel
from ingest.broker.rabbitmq.consume_channel import ConsumeChannel, DeliveryToken
from ingest.broker.rabbitmq.delivery_memory import DeliveryMemory
from ingest.broker.rabbitmq.quarantine import PoisonQuarantine
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery

_RAISE_TIMEOUT: Final = 600.0
"""Seconds in which RabbitMQ must answer when the prefetch is raised: many large deliveries may come before it."""


class RabbitConsumer(ReconnectingChannel):
    """`domain.ports.Consumer` on one connection and one channel.

    Args:
        new_connection: makes a connection that is not connected yet.
        queue: the queue to consume.
        prefetch: the most deliveries that may be unacknowledged.
        isolate: quarantine deliveries that come back repeatedly, see `quarantine`.
        memory: limits the bytes of unacknowledged deliveries, without those set apart; by default nothing does.
    """

    def __init__(
        self,
        new_connection: Callable[[], Connection],
        queue: str,
        prefetch: int,
        *,
        isolate: bool = False,
        memory: DeliveryMemory | None = None,
    ) -> None:
        super().__init__(new_connection, f"consume {queue}")
        self._queue = queue
        self._prefetch = prefetch
        self._memory = memory or DeliveryMemory(math.inf)
        self._extra = 0
        self._wanted_extra = 0
        self._raising: asyncio.Task[None] | None = None
        self._isolate = isolate
        self._stopping = False
        self._channel: ConsumeChannel | None = None
        self._quarantine: PoisonQuarantine | None = None
        self._buffer: list[Delivery] = []
        self._arrived = asyncio.Event()
        self._single_delivery = False
        self._resumed = asyncio.Event()
        self._resumed.set()

    async def receive(self) -> list[Delivery]:
        while not self._buffer:
            if self._stopping and not (self._quarantine and self._quarantine.holds_deliveries):
                return []
            self._arrived.clear()
            await self._arrived.wait()
        received, self._buffer = self._buffer, []
        return received

    @property
    def held(self) -> int:
        return len(self._channel.unacked) if self._channel is not None else 0

    def alive(self, delivery: Delivery) -> bool:
        token: DeliveryToken = delivery.token
        return token.channel is self._channel

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        if self._channel is not None:
            self._channel.ack(self._tags(deliveries))
            self._finished()

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        if self._channel is not None:
            self._channel.requeue(self._tags(deliveries))
            self._finished()

    async def pause(self) -> None:
        self._resumed.clear()
        self._single_delivery = True  # if the outage continues, it costs one delivery
        if self._channel is not None:
            self._channel.finish()  # the connection is closed, which returns all deliveries at once

    async def resume(self) -> None:
        self._resumed.set()

    async def stop(self) -> None:
        # What was delivered is still handed out: returning it would count as a failed delivery.
        if not self._stopping:
            if self._quarantine is not None:
                await self._quarantine.stop()
            if self._channel is not None:
                await self._channel.cancel()
        self._stopping = True
        self._arrived.set()

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        tags = self._tags(deliveries)
        if self._channel is not None:
            self._channel.set_apart(tags)
        if self._quarantine is not None:
            self._quarantine.set_apart(tags)
        self._wanted_extra = max(self._wanted_extra, extra)
        self._raise_extra()

    async def raise_prefetch(self, more: int) -> None:
        """Allow `more` further unacknowledged deliveries until the connection is lost. Raises BrokerUnavailable."""
        if self._channel is None:
            raise BrokerUnavailable(f"cannot consume {self._queue}: {self._last_problem}")
        await self._channel.consume(more)

    def discard(self) -> None:
        """Hand out nothing more. What has arrived and still arrives is held without being kept in memory."""
        self._buffer = []
        if self._channel is not None:
            self._channel.discard()

    def _raise_extra(self) -> None:
        """Raise the prefetch in the background, because the broker's answer comes after the deliveries on their way."""
        channel = self._channel
        if channel is None or channel.waits_for_memory or self._wanted_extra <= self._extra:
            return  # it could not read the answer now; the next acknowledgement tries again
        # In steps, because each one is a further consumer of the channel.
        more = max(self._wanted_extra - self._extra, self._prefetch)
        self._extra += more
        self._raising = asyncio.create_task(self._raise(channel, more))

    async def _raise(self, channel: ConsumeChannel, more: int) -> None:
        with contextlib.suppress(BrokerUnavailable):  # then the channel is lost, and with it what waits apart
            await channel.consume(more, _RAISE_TIMEOUT)

    async def close(self) -> None:
        self._stopping = True
        self._arrived.set()
        await super().close()

    async def _open(self, connection: Connection) -> asyncio.Future[None]:
        await self._resumed.wait()
        amqp_channel = await connection.channel(confirms=False)
        channel = ConsumeChannel(connection, amqp_channel, self._queue, self._delivered, self._memory)
        connection.sinks[amqp_channel.number] = channel
        if not self._stopping:
            self._channel = channel
            single_delivery = self._single_delivery and self._isolate
            self._single_delivery = False
            if self._isolate:
                self._quarantine = PoisonQuarantine(
                    channel, self._prefetch, self._hand_out, single_delivery=single_delivery
                )
            await channel.consume(1 if single_delivery else self._prefetch)
        return channel.end

    def _lost(self) -> None:
        if self._channel is not None:
            self._channel.finish()
            self._channel = None
        if self._raising is not None:
            self._raising.cancel()
        self._extra = self._wanted_extra = 0
        if self._quarantine is not None:
            self._quarantine.close()
            self._quarantine = None
        self._buffer = []
        self._arrived.set()

    def _delivered(self, delivery: Delivery) -> None:
        if self._quarantine is None or not self._quarantine.withhold(delivery):
            self._hand_out((delivery,))

    def _hand_out(self, deliveries: Sequence[Delivery]) -> None:
        self._buffer += deliveries
        self._arrived.set()

    def _finished(self) -> None:
        if self._quarantine is not None:
            self._quarantine.deliveries_finished()
        self._raise_extra()

    def _tags(self, deliveries: Sequence[Delivery]) -> list[int]:
        return [delivery.token.tag for delivery in deliveries if delivery.token.channel is self._channel]
