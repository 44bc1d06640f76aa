"""Consuming from RabbitMQ: deliveries as lists, acknowledgements as one buffer."""

import asyncio
from collections.abc import Callable, Iterable, KeysView, Sequence
from typing import Any

import aiormq

from ingest.broker.rabbitmq.amqp import codec
from ingest.broker.rabbitmq.amqp.connection import CONNECT_TIMEOUT, Connection, ContentAssembler
from ingest.broker.rabbitmq.amqp.reconnecting import ReconnectingChannel
from ingest.broker.rabbitmq.quarantine import PoisonQuarantine
from ingest.broker.rabbitmq.versions import attempts
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery


class RabbitConsumer(ReconnectingChannel):
    """`domain.ports.Consumer` on one connection and one channel.

    Args:
        connect: makes a wire, not yet connected.
        queue: what to consume.
        prefetch: most deliveries unacknowledged at a time.
        isolate: hand out alone what came back again and again, see `rabbitmq_suspects`.
    """

    def __init__(self, connect: Callable[[], Connection], queue: str, prefetch: int, *, isolate: bool = False) -> None:
        super().__init__(connect, f"consume {queue}")
        self._queue = queue
        self._prefetch = prefetch
        self._isolate = isolate
        self._stopping = False
        self._channel: _ConsumeChannel | None = None
        self._suspects: PoisonQuarantine | None = None
        self._buffer: list[Delivery] = []
        self._arrived = asyncio.Event()
        self._narrow = False
        self._resumed = asyncio.Event()
        self._resumed.set()

    async def receive(self) -> list[Delivery]:
        while not self._buffer:
            if self._stopping and not (self._suspects and self._suspects.waiting):
                return []
            self._arrived.clear()
            await self._arrived.wait()
        taken, self._buffer = self._buffer, []
        return taken

    @property
    def held(self) -> int:
        return len(self._channel.unacked) if self._channel is not None else 0

    def alive(self, delivery: Delivery) -> bool:
        return delivery.token[0] is self._channel

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        if self._channel is not None:
            self._channel.ack(self._tags(deliveries))
            self._settled()

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        if self._channel is not None:
            self._channel.reject(self._tags(deliveries), requeue=True)
            self._settled()

    async def discard(self, deliveries: Sequence[Delivery]) -> None:
        if self._channel is not None:
            self._channel.reject(self._tags(deliveries), requeue=False)
            self._settled()

    async def pause(self) -> None:
        self._resumed.clear()
        self._narrow = True  # an outage that is not over is to cost one delivery only
        if self._channel is not None:
            self._channel.finish()  # the link closes the connection: all is given back at once

    async def resume(self) -> None:
        self._resumed.set()

    async def stop(self) -> None:
        # What has been delivered is still handed out: giving it back would count as a failed delivery.
        if not self._stopping:
            if self._suspects is not None:
                await self._suspects.stop()
            if self._channel is not None:
                await self._channel.cancel()
        self._stopping = True
        self._arrived.set()

    async def widen(self, prefetch: int) -> None:
        """Take `prefetch` more at a time from now on, until the connection is lost. Raises BrokerUnavailable."""
        if self._channel is None:
            raise BrokerUnavailable(f"cannot consume {self._queue}: {self._why}")
        await self._channel.consume(prefetch)

    async def close(self) -> None:
        self._stopping = True
        self._arrived.set()
        await super().close()

    async def _open(self, wire: Connection) -> asyncio.Future[None]:
        await self._resumed.wait()
        channel = await wire.channel(confirms=False)
        lane = _ConsumeChannel(wire, channel, self._queue, self._delivered)
        wire.sinks[channel.number] = lane
        if not self._stopping:
            self._channel = lane
            narrow = self._narrow and self._isolate
            self._narrow = False
            if self._isolate:
                self._suspects = PoisonQuarantine(lane, self._prefetch, self._hand_out, narrow=narrow)
            await lane.consume(1 if narrow else self._prefetch)
        return lane.end

    def _lost(self) -> None:
        self._channel = None
        if self._suspects is not None:
            self._suspects.close()
            self._suspects = None
        self._buffer = []
        self._arrived.set()

    def _delivered(self, delivery: Delivery) -> None:
        if self._suspects is None or not self._suspects.withhold(delivery):
            self._hand_out((delivery,))

    def _hand_out(self, deliveries: Sequence[Delivery]) -> None:
        self._buffer += deliveries
        self._arrived.set()

    def _settled(self) -> None:
        if self._suspects is not None:
            self._suspects.settled()

    def _tags(self, deliveries: Sequence[Delivery]) -> list[int]:
        return [delivery.token[1] for delivery in deliveries if delivery.token[0] is self._channel]


class _ConsumeChannel:
    """One channel that consumes. `end` is done once nothing more will come."""

    def __init__(
        self, wire: Connection, channel: aiormq.abc.AbstractChannel, queue: str, deliver: Callable[[Delivery], None]
    ) -> None:
        self._wire = wire
        self._channel = channel
        self._queue = queue
        self._deliver = deliver
        self._consumers = 0
        self._live: list[str] = []
        self._unacked: dict[int, None] = {}  # ordered: delivery tags only grow
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel.closing.add_done_callback(lambda _: self.finish())
        self._contents = ContentAssembler(self._delivered)
        self.header = self._contents.header
        self.body = self._contents.body

    @property
    def unacked(self) -> KeysView[int]:
        """Tags of the deliveries that are neither acknowledged nor rejected."""
        return self._unacked.keys()

    async def consume(self, prefetch: int) -> None:
        """One more consumer. QoS first, or the queue comes all at once. Raises BrokerUnavailable."""
        self._consumers += 1
        # Numbered so that they sort: when the channel ends, the queue takes the messages back consumer by consumer.
        tag = f"ingest.{self._queue}.{self._consumers:05d}"
        self._live.append(tag)
        try:
            await self._channel.basic_qos(prefetch_count=prefetch, timeout=CONNECT_TIMEOUT)
            await self._channel.basic_consume(self._queue, _no_callback, consumer_tag=tag, timeout=CONNECT_TIMEOUT)
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError) as error:
            raise BrokerUnavailable(
                f"cannot consume {self._queue} from {self._wire}: {error or 'no answer'}"
            ) from error

    async def cancel(self) -> None:
        """Ask for no more; returns when none will come, or the connection is gone."""
        try:
            while self._live:
                await self._channel.basic_cancel(self._live[0], timeout=CONNECT_TIMEOUT)
                del self._live[0]
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError):
            self._wire.abort()

    def ack(self, tags: list[int]) -> None:
        """One multiple ack for what is oldest without a gap, single ones for the rest, in one buffer."""
        for tag in tags:
            self._unacked.pop(tag, None)
        oldest = next(iter(self._unacked), None)
        number = self._channel.number
        prefix = max((tag for tag in tags if oldest is None or tag < oldest), default=None)
        out = [codec.ack(number, prefix, multiple=True)] if prefix is not None else []
        if prefix is None or len(tags) > 1:
            out += [codec.ack(number, tag, multiple=False) for tag in tags if prefix is None or tag > prefix]
        self._write(out)

    def reject(self, tags: list[int], *, requeue: bool) -> None:
        for tag in tags:
            self._unacked.pop(tag, None)
        self._write(codec.reject(self._channel.number, tag, requeue=requeue) for tag in tags)

    def method(self, method: int, data: bytes, start: int) -> bool:
        if method == codec.DELIVER:
            self._contents.begin(codec.read_deliver(data, start))
            return True
        if method == codec.CONSUMER_CANCEL:
            self.finish()  # the queue was deleted or its leader moved away; aiormq answers
        return False

    def _delivered(self, arguments: tuple[int, bool, str], properties: dict[str, Any], body: bytes) -> None:
        tag, redelivered, routing_key = arguments
        self._unacked[tag] = None
        get = properties.get
        headers = get("headers") or {}
        self._deliver(
            Delivery(
                body=body,
                queue=self._queue,
                routing_key=routing_key,
                message_id=get("message_id"),
                content_type=get("content_type"),
                user_id=get("user_id"),
                type=get("type"),
                headers=headers,
                redelivered=redelivered,
                # Before it has come back, the broker leaves these headers as the producer may have forged them.
                deliveries=attempts(headers) if headers and redelivered else 0,
                token=(self, tag),
                timestamp=get("timestamp"),
            )
        )

    def _write(self, out: Iterable[bytes]) -> None:
        if not self._wire.closed:
            self._wire.write(b"".join(out))

    def finish(self) -> None:
        """It is of no more use."""
        if not self.end.done():
            self.end.set_result(None)


async def _no_callback(_: object) -> None:
    """Deliveries take the fast lane; aiormq only wants something to register."""
