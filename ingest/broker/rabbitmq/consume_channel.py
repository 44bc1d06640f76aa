"""One channel that consumes: its deliveries, and acknowledgements as one buffer.

A channel stops reading from its connection while there is no memory for the delivery that arrives. Acknowledgements are
still written, and publishes have other connections.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, KeysView, Mapping
from typing import Any, Final, NamedTuple

import aiormq
import structlog

from ingest.broker.rabbitmq.amqp import codec
from ingest.broker.rabbitmq.amqp.connection import CONNECT_TIMEOUT, Connection
from ingest.broker.rabbitmq.amqp.frames import ContentAssembler
from ingest.broker.rabbitmq.delivery_memory import DeliveryMemory, Reservation
from ingest.broker.rabbitmq.versions import attempt_headers, attempts, checks_deaths
from ingest.domain import dead_letters, redrives
from ingest.domain.errors import BrokerUnavailable, cause_of
from ingest.domain.messages import Delivery
from ingest.domain.topology import INGEST_DEAD
from ingest.domain.trace import TRACEPARENT, TRACESTATE
from ingest.waiting import raise_if_cancelled

_CANCELLED: Final = (
    "the queue was deleted, its leader moved away, or (from RabbitMQ 4.3 on) a delivery was held for longer than the "
    "consumer timeout"
)

_log = structlog.get_logger(__name__)


class DeliveryToken(NamedTuple):
    """`Delivery.token` of this adapter: the channel that delivered the message, and its delivery tag there."""

    channel: object
    tag: int


class ConsumeChannel:
    """One channel that consumes. `end` is done once nothing more will be delivered.

    Args:
        connection: its sink is this channel.
        channel: aiormq's channel.
        queue: the queue to consume.
        deliver: called with each delivery.
        memory: as for `RabbitConsumer`.
    """

    def __init__(
        self,
        connection: Connection,
        channel: aiormq.abc.AbstractChannel,
        queue: str,
        deliver: Callable[[Delivery], None],
        memory: DeliveryMemory,
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._queue = queue
        self._deliver = deliver
        self._consumers = 0
        self._consumer_tags: list[str] = []
        self._memory = memory
        self._arriving: Reservation | None = None
        """The memory of the delivery whose body is arriving."""
        self._unacked: dict[int, Reservation] = {}
        """Delivery tag to the memory of the delivery. It is ordered, because the tags only grow."""
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel.closing.add_done_callback(self._closed)
        headers = [TRACEPARENT, TRACESTATE, *attempt_headers(connection.server_version)]
        headers += dead_letters.HEADERS if queue == INGEST_DEAD else redrives.HEADERS
        self._contents = ContentAssembler(self._delivered, headers)
        self._deaths_checked = checks_deaths(connection.server_version)
        self._properties_size = 0
        self.body = self._contents.body

    @property
    def unacked(self) -> KeysView[int]:
        """Tags of the deliveries that are neither acknowledged nor requeued."""
        return self._unacked.keys()

    @property
    def waits_for_memory(self) -> bool:
        """Whether nothing is read, because the deliveries in progress use all memory."""
        return self._arriving is not None and self._arriving.is_waiting

    async def consume(self, prefetch: int, patience: float = CONNECT_TIMEOUT) -> None:
        """Add a consumer; wait `patience` seconds for each answer. Raises BrokerUnavailable."""
        self._consumers += 1
        # Zero-padded, so that tags sort in the order of creation: when the channel ends, the queue takes messages back
        # consumer by consumer in the order of the tags, which is roughly the order in which they were delivered.
        consumer_tag = f"ingest.{self._queue}.{self._consumers:05d}"
        self._consumer_tags.append(consumer_tag)
        try:
            # QoS comes first, or the whole queue is delivered at once.
            await self._channel.basic_qos(prefetch_count=prefetch, timeout=patience)
            await self._channel.basic_consume(self._queue, _no_callback, consumer_tag=consumer_tag, timeout=patience)
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError) as error:
            raise BrokerUnavailable(
                f"cannot consume {self._queue} from {self._connection}: {cause_of(error)}"
            ) from error

    async def cancel(self) -> None:
        """Ask for no more deliveries; return when none will arrive, or the connection is lost."""
        try:
            while self._consumer_tags:
                await self._channel.basic_cancel(self._consumer_tags[0], timeout=CONNECT_TIMEOUT)
                del self._consumer_tags[0]
        except (aiormq.exceptions.AMQPError, RuntimeError, TimeoutError):
            self._connection.abort()
        except asyncio.CancelledError:
            raise_if_cancelled()  # aiormq cancels every caller that waits on a connection that breaks
            self._connection.abort()

    def ack(self, tags: list[int]) -> None:
        """Acknowledge in one buffer: one multiple ack up to the oldest gap, single acks for the rest."""
        self._finished(tags)
        oldest = next(iter(self._unacked), None)
        number = self._channel.number
        prefix = max((tag for tag in tags if oldest is None or tag < oldest), default=None)
        frames = [codec.ack(number, prefix, multiple=True)] if prefix is not None else []
        if prefix is None or len(tags) > 1:
            frames += [codec.ack(number, tag, multiple=False) for tag in tags if prefix is None or tag > prefix]
        self._write(frames)

    def set_apart(self, tags: list[int]) -> None:
        """Do not count these deliveries towards the memory any more."""
        for tag in tags:
            if tag in self._unacked:
                self._unacked[tag].release()

    def discard(self) -> None:
        """Deliver nothing more, and read without a limit: the broker gets back what arrives."""
        self._deliver = _discard
        self._memory = DeliveryMemory(math.inf)
        self._release_all()
        self._limit_reading()

    def requeue(self, tags: list[int]) -> None:
        self._finished(tags)
        self._write(codec.requeue(self._channel.number, tag) for tag in tags)

    def method(self, method: int, data: bytes, start: int) -> bool:
        if method == codec.DELIVER:
            self._contents.begin(codec.read_deliver(data, start))
            return True
        if method == codec.CONSUMER_CANCEL:
            _log.warning("consumer_cancelled", queue=self._queue, cause=_CANCELLED)
            self.finish(BrokerUnavailable(f"RabbitMQ cancelled the consumer of {self._queue}"))  # aiormq answers
        return False

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        self.finish(None if closing.cancelled() else closing.exception())

    def header(self, data: bytes, start: int) -> bool:
        if self._queue == INGEST_DEAD:
            _, _, self._properties_size = codec.frame_head.unpack_from(data, start - codec.frame_head.size)
        is_ours = self._contents.header(data, start)
        if is_ours and self._contents.missing and not self.end.done():
            self._arriving = self._memory.reserve(self._contents.missing, self._limit_reading)
            if self._arriving.is_waiting:
                self._limit_reading()
        return is_ours

    def _delivered(self, arguments: tuple[int, bool, str], properties: dict[str, Any], body: bytes) -> None:
        if self.end.done():
            return  # it arrived while the connection closes
        tag, redelivered, routing_key = arguments
        get = properties.get
        headers = get("headers") or {}
        was_waiting = self.waits_for_memory
        self._unacked[tag] = reservation = self._arriving or self._memory.reserve(0, self._limit_reading)
        self._arriving = None
        reservation.arrived(len(body) + (_size(headers) if headers else 0))
        if was_waiting:
            self._limit_reading()
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
                # On a first delivery these headers come from the producer, who may have forged them.
                deliveries=attempts(headers) if headers and redelivered else 0,
                token=DeliveryToken(self, tag),
                timestamp=get("timestamp"),
                priority=get("priority"),
                content_encoding=get("content_encoding"),
                deaths_checked=self._deaths_checked,
                properties_size=self._properties_size,
            )
        )

    def _finished(self, tags: list[int]) -> None:
        for tag in tags:
            if (reservation := self._unacked.pop(tag, None)) is not None:
                reservation.release()

    def _release_all(self) -> None:
        arriving, self._arriving = self._arriving, None
        for reservation in [arriving, *self._unacked.values()]:
            if reservation is not None:
                reservation.release()

    def _limit_reading(self) -> None:
        waits = self.waits_for_memory
        if waits is not self._connection.reading_paused and not self.end.done():
            self._connection.pause_reading() if waits else self._connection.resume_reading()

    def _write(self, frames: Iterable[bytes]) -> None:
        if not self._connection.closed:
            self._connection.write(b"".join(frames))

    def finish(self, reason: BaseException | None = None) -> None:
        """Mark the channel as unusable; `end` has the reason, if there is one."""
        if self.end.done():
            return
        if reason is None:
            self.end.set_result(None)
        else:
            self.end.set_exception(reason)
            self.end.exception()  # asyncio would log one that was never read
        self._release_all()


def _size(headers: Mapping[str, Any]) -> int:
    """Return the bytes of texts in headers. A producer's trace context may have 128 KiB."""
    return sum(len(value) for value in headers.values() if isinstance(value, str | bytes))


def _discard(_: Delivery) -> None:
    """The delivery stays unacknowledged."""


async def _no_callback(_: object) -> None:
    """aiormq needs a callback to register. Deliveries go to the `FrameSink` instead."""
