"""Publishing to RabbitMQ: the frames of many messages in one buffer, and an awaited confirm for each."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiormq
import structlog

from ingest.broker.rabbitmq.amqp import codec
from ingest.broker.rabbitmq.amqp.connection import Connection, ContentAssembler
from ingest.broker.rabbitmq.amqp.reconnecting import ReconnectingChannel
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Message, PublishOutcome

_BUFFER: Final = 1024 * 1024
"""Bytes to write before waiting for the socket to take them."""
_NACKED_FOR: Final = 15.0
"""Seconds of nacks after which a channel is given up for another, see `rabbitmq_versions`."""
_ANSWER: Final = 1.5
"""Seconds in which RabbitMQ answers a question, or is not ready: a hung one is noticed long before its heartbeat is."""

_log = structlog.get_logger(__name__)


class RabbitPublisher(ReconnectingChannel):
    """`domain.ports.Publisher` on one connection and one channel in confirm mode.

    Args:
        connect: makes a wire, not yet connected.
        what: what it is for, in logs and metrics.
        user_id: the connection's user, or None where it is not known.
        timeout: seconds one call waits; what is not confirmed by then is UNKNOWN.
    """

    def __init__(self, connect: Callable[[], Connection], what: str, user_id: str | None, timeout: float) -> None:
        super().__init__(connect, what)
        self._user_id = user_id
        self._timeout = timeout
        self._channel: _ConfirmChannel | None = None

    @property
    def writable(self) -> bool:
        """Whether a publish would be written now."""
        return self._channel is not None and self._channel.writable

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        flight = _Flight(len(messages))
        position = 0
        try:
            async with asyncio.timeout(self._timeout):
                while position < len(messages) and (channel := self._channel) and channel.writable:
                    position = channel.write(messages, position, flight)
                    if position < len(messages):
                        await channel.wire.drain()
                await flight.settled()
        except (TimeoutError, ConnectionError):
            pass  # the outcomes tell
        if (channel := self._channel) is not None and channel.nacked_too_long():
            _log.warning("nothing but nacks from a queue, trying on another connection", seconds=_NACKED_FOR)
            channel.wire.abort()
        return list(flight.outcomes)

    async def ready(self) -> None:
        channel = self._channel
        if channel is None or channel.wire.closed:
            raise BrokerUnavailable(f"no connection for publishing: {self._why}")
        if channel.wire.blocked is not None:
            raise BrokerUnavailable(f"{channel.wire} takes no publishes for now: {channel.wire.blocked}")
        if not await channel.answers():
            raise BrokerUnavailable(f"{channel.wire} does not answer")

    async def _open(self, wire: Connection) -> asyncio.Future[None]:
        channel = await wire.channel(confirms=True)
        self._channel = _ConfirmChannel(wire, channel, self._user_id)
        wire.sinks[channel.number] = self._channel
        return channel.closing

    def _lost(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.fail()


class _Flight:
    """The messages of one call. Those not written are UNSENT, those without an answer UNKNOWN."""

    __slots__ = ("_done", "_missing", "outcomes")

    def __init__(self, count: int) -> None:
        self.outcomes = [PublishOutcome.UNSENT] * count
        self._missing = 0
        self._done: asyncio.Future[None] | None = None

    def written(self, index: int) -> None:
        self.outcomes[index] = PublishOutcome.UNKNOWN
        self._missing += 1

    def settle(self, index: int, outcome: PublishOutcome) -> None:
        if self.outcomes[index] is PublishOutcome.UNKNOWN:  # else it was returned before its confirm
            self.outcomes[index] = outcome
        self.forget()

    def forget(self) -> None:
        """No answer will come for one of them."""
        self._missing -= 1
        if not self._missing and self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def settled(self) -> None:
        """Wait for an answer to all that were written."""
        if self._missing:
            self._done = asyncio.get_running_loop().create_future()
            await self._done


class _ConfirmChannel:
    """One channel in confirm mode: numbers what it writes, and matches acks, nacks and returns to it."""

    def __init__(self, wire: Connection, channel: aiormq.abc.AbstractChannel, user_id: str | None) -> None:
        self.wire = wire
        self._channel = channel
        self._question: asyncio.Task[bool] | None = None
        self._encoder = codec.PublishEncoder(channel.number, wire.frame_max, user_id)
        self._pending: dict[int, tuple[_Flight, int]] = {}
        self._next = 1
        self._lowest = 1
        self._first_nack = self._last_nack = 0.0
        self._returns = ContentAssembler(self._returned)
        self.header = self._returns.header
        self.body = self._returns.body

    @property
    def writable(self) -> bool:
        return self.wire.blocked is None and not self.wire.closed

    def write(self, messages: Sequence[Message], position: int, flight: _Flight) -> int:
        """Write from `position` on as much as one buffer takes; return where to go on.

        Raises ValueError where a message has a name that AMQP cannot carry; then nothing was written.
        """
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
            self._pending[self._next + index - position] = (flight, index)
            flight.written(index)
        self._next = number
        self.wire.write(b"".join(buffer))
        return position + len(buffer)

    async def answers(self) -> bool:
        """Whether RabbitMQ answers on this channel in time."""
        # One question for all who ask, never given up: aiormq would close the channel, and what is in flight with it.
        question = self._question
        if question is None or question.done():
            question = self._question = asyncio.create_task(self._ask())
        await asyncio.wait([question], timeout=_ANSWER)
        return question.done() and question.result()

    async def _ask(self) -> bool:
        try:
            await self._channel.basic_qos()  # without effect where nothing is consumed
        except (aiormq.exceptions.AMQPError, RuntimeError, OSError, asyncio.CancelledError):
            return False  # the connection is gone; aiormq cancels whoever waits on it
        return True

    def nacked_too_long(self) -> bool:
        """Whether nacks go on and on; as one publish is enough to see, it is asked after each."""
        return self._last_nack - self._first_nack >= _NACKED_FOR

    def fail(self) -> None:
        """The channel is gone: no more answers."""
        for flight, _ in self._pending.values():
            flight.forget()
        self._pending.clear()

    def method(self, method: int, data: bytes, start: int) -> bool:
        if method == codec.ACK:
            self._settle(*codec.read_confirm(data, start), PublishOutcome.CONFIRMED)
        elif method == codec.NACK:
            now = time.monotonic()
            if now - self._last_nack > _NACKED_FOR:
                self._first_nack = now
            self._last_nack = now
            self._settle(*codec.read_confirm(data, start), PublishOutcome.NACKED)
        elif method == codec.RETURN:
            self._returns.begin(codec.RETURN)
        else:
            return False
        return True

    def _settle(self, tag: int, multiple: bool, outcome: PublishOutcome) -> None:
        take = self._pending.pop
        for number in range(self._lowest, tag + 1) if multiple else (tag,):
            entry = take(number, None)
            if entry is not None:
                entry[0].settle(entry[1], outcome)
        if multiple:
            self._lowest = tag + 1

    def _returned(self, _: Any, properties: dict[str, Any], __: bytes) -> None:
        # RabbitMQ sends a return before the confirm of the same message.
        entry = self._pending.get(int(properties["correlation_id"]))
        if entry is not None:
            flight, index = entry
            flight.outcomes[index] = PublishOutcome.UNROUTABLE
