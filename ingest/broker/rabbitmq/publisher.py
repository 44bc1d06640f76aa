"""Publishing to RabbitMQ: the frames of many messages in one buffer, and a confirm for each message."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiormq
import structlog

from ingest.broker.rabbitmq.amqp import codec
from ingest.broker.rabbitmq.amqp.connection import Connection
from ingest.broker.rabbitmq.amqp.frames import ContentAssembler
from ingest.broker.rabbitmq.amqp.reconnecting import ReconnectingChannel
from ingest.broker.rabbitmq.confirm_health import ConfirmHealth
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import MAX_MESSAGE, Message, PublishOutcome

_BUFFER: Final = 1024 * 1024
"""Bytes to write before waiting for the socket to take them."""
_ANSWER: Final = 1.5
"""Seconds in which RabbitMQ must answer a probe. A broker that hangs is noticed long before its heartbeat fails."""

_log = structlog.get_logger(__name__)


class RabbitPublisher(ReconnectingChannel):
    """`domain.ports.Publisher` on one connection and one channel in confirm mode.

    Args:
        new_connection: makes a connection that is not connected yet.
        purpose: what the connection is for, in logs and metrics.
        user_id: the connection's user; None if it is not known.
        timeout: seconds that one call waits; a message that is not confirmed by then is UNKNOWN.
    """

    def __init__(
        self, new_connection: Callable[[], Connection], purpose: str, user_id: str | None, timeout: float
    ) -> None:
        super().__init__(new_connection, purpose)
        self._user_id = user_id
        self._timeout = timeout
        self._channel: _ConfirmChannel | None = None

    @property
    def writable(self) -> bool:
        """Whether a publish would be written now."""
        return self._channel is not None and self._channel.writable

    @property
    def queued(self) -> int:
        """Bytes that wait in this process, because the socket does not take them."""
        return self._channel.connection.queued if self._channel is not None else 0

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        too_large = {index for index, message in enumerate(messages) if len(message.body) > MAX_MESSAGE}
        if not too_large:
            return await self._publish(messages)
        for index in too_large:
            _log_too_large(messages[index])
        outcomes = iter(await self._publish([msg for index, msg in enumerate(messages) if index not in too_large]))
        return [PublishOutcome.TOO_LARGE if index in too_large else next(outcomes) for index in range(len(messages))]

    async def _publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        call = _PublishCall(len(messages))
        position = 0
        try:
            async with asyncio.timeout(self._timeout):
                while position < len(messages) and (channel := self._channel) and channel.writable:
                    # If the broker does not read, nothing more is queued in this process, and the call ends UNSENT.
                    await channel.connection.drain()
                    if channel is self._channel and channel.writable:
                        position = channel.write(messages, position, call)
                await call.answered()
        except (TimeoutError, ConnectionError):
            pass  # the outcomes say which messages were not confirmed
        if (channel := self._channel) is not None and (problem := channel.problem()) is not None:
            _log.warning(problem, broker=str(channel.connection))
            channel.connection.abort()
        return list(call.outcomes)

    async def ready(self) -> None:
        channel = self._channel
        if channel is None or channel.connection.closed:
            raise BrokerUnavailable(f"no connection for publishing: {self._last_problem}")
        if channel.connection.blocked is not None:
            raise BrokerUnavailable(f"{channel.connection} blocks publishers: {channel.connection.blocked}")
        if not await channel.answers():
            raise BrokerUnavailable(f"{channel.connection} does not answer")

    async def _open(self, connection: Connection) -> asyncio.Future[None]:
        channel = await connection.channel(confirms=True)
        self._channel = _ConfirmChannel(connection, channel, self._user_id)
        connection.sinks[channel.number] = self._channel
        return channel.closing

    def _lost(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.fail()


def _log_too_large(message: Message) -> None:
    _log.error(
        "message_too_large",
        exchange=message.exchange,
        routing_key=message.routing_key,
        message_id=message.message_id,
        bytes=len(message.body),
        most=MAX_MESSAGE,
    )


class _PublishCall:
    """The messages of one call to `publish`.

    A message is UNSENT until it is written, then UNKNOWN until it is answered.
    """

    __slots__ = ("_done", "_missing", "outcomes")

    def __init__(self, count: int) -> None:
        self.outcomes = [PublishOutcome.UNSENT] * count
        self._missing = 0
        self._done: asyncio.Future[None] | None = None

    def written(self, index: int) -> None:
        self.outcomes[index] = PublishOutcome.UNKNOWN
        self._missing += 1

    def answer(self, index: int, outcome: PublishOutcome) -> None:
        if self.outcomes[index] is PublishOutcome.UNKNOWN:  # otherwise it was returned before its confirm
            self.outcomes[index] = outcome
        self.expect_one_less()

    def expect_one_less(self) -> None:
        """Count a message that was answered, or that will not be answered."""
        self._missing -= 1
        if not self._missing and self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def answered(self) -> None:
        """Wait until every message that was written is answered."""
        if self._missing:
            self._done = asyncio.get_running_loop().create_future()
            await self._done


class _ConfirmChannel:
    """One channel in confirm mode. It numbers messages, and matches acks, nacks and returns to them."""

    def __init__(self, connection: Connection, channel: aiormq.abc.AbstractChannel, user_id: str | None) -> None:
        self.connection = connection
        self._channel = channel
        self._probe: asyncio.Task[bool] | None = None
        self._encoder = codec.PublishEncoder(channel.number, connection.frame_max, user_id)
        self._pending: dict[int, tuple[_PublishCall, int]] = {}
        self._next = 1
        self._lowest = 1
        self._now = asyncio.get_running_loop().time
        self._health = ConfirmHealth()
        self._stalled = False
        self._returns = ContentAssembler(self._returned)
        self.header = self._returns.header
        self.body = self._returns.body

    @property
    def writable(self) -> bool:
        return self.connection.blocked is None and not self.connection.closed

    def write(self, messages: Sequence[Message], position: int, call: _PublishCall) -> int:
        """Write messages from `position` on until one buffer is full; return the position to continue at.

        Raises:
            ValueError: a message has a name that AMQP cannot carry; nothing was written.
        """
        if not self._pending or self._stalled:
            self._stalled = False
            self._health.waits(self._now())
        buffer = []
        size = 0
        number = self._next
        for message in messages[position:] if position else messages:
            encoded = self._encoder.encode(message, number)
            buffer.append(encoded)
            number += 1
            size += len(encoded)
            if size >= _BUFFER:
                break
        for index in range(position, position + len(buffer)):
            self._pending[self._next + index - position] = (call, index)
            call.written(index)
        self._next = number
        self.connection.write(b"".join(buffer))
        return position + len(buffer)

    async def answers(self) -> bool:
        """Return whether RabbitMQ answers on this channel in time."""
        # All callers share one probe, and it is never cancelled: aiormq would close the channel and lose the confirms.
        probe = self._probe
        if probe is None or probe.done():
            probe = self._probe = asyncio.create_task(self._send_probe())
        await asyncio.wait([probe], timeout=_ANSWER)
        return probe.done() and probe.result()

    async def _send_probe(self) -> bool:
        try:
            await self._channel.basic_qos()  # has no effect on a channel that does not consume
        except (aiormq.exceptions.AMQPError, RuntimeError, OSError, asyncio.CancelledError):
            return False  # the connection is lost; aiormq cancels its callers then
        return True

    def problem(self) -> str | None:
        """Return why the channel must be replaced, as the name of a log event. It is checked after every publish."""
        if not self.writable:
            self._stalled = True  # a broker that blocks publishers does not read what was written before
            return None
        return self._health.problem(self._now(), pending=bool(self._pending))

    def fail(self) -> None:
        """Give every unconfirmed message the outcome of a lost channel; no more answers will arrive."""
        for call, _ in self._pending.values():
            call.expect_one_less()
        self._pending.clear()

    def method(self, method: int, data: bytes, start: int) -> bool:
        if method == codec.ACK:
            self._health.acked(self._now())
            self._answer(*codec.read_confirm(data, start), PublishOutcome.CONFIRMED)
        elif method == codec.NACK:
            self._health.nacked(self._now())
            self._answer(*codec.read_confirm(data, start), PublishOutcome.NACKED)
        elif method == codec.RETURN:
            self._returns.begin(codec.RETURN)
        else:
            return False
        return True

    def _answer(self, tag: int, multiple: bool, outcome: PublishOutcome) -> None:
        take = self._pending.pop
        for number in range(self._lowest, tag + 1) if multiple else (tag,):
            pending = take(number, None)
            if pending is not None:
                pending[0].answer(pending[1], outcome)
        if multiple:
            self._lowest = tag + 1

    def _returned(self, _: Any, properties: dict[str, Any], __: bytes) -> None:
        # RabbitMQ sends a return before the confirm of the same message.
        pending = self._pending.get(int(properties["correlation_id"]))
        if pending is not None:
            call, index = pending
            call.outcomes[index] = PublishOutcome.UNROUTABLE
