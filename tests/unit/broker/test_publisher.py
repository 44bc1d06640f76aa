"""`RabbitPublisher` on a connection that answers every publish as the test says."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from structlog.testing import capture_logs

from ingest.broker.rabbitmq.amqp import codec
from ingest.broker.rabbitmq.amqp.connection import Connection
from ingest.broker.rabbitmq.amqp.frames import FrameSink
from ingest.broker.rabbitmq.publisher import RabbitPublisher
from ingest.domain import topology
from ingest.domain.messages import MAX_MESSAGE, Message, PublishOutcome
from tests.support.virtual_time_loop import in_virtual_time

CONFIRMED, NACKED, TOO_LARGE = PublishOutcome.CONFIRMED, PublishOutcome.NACKED, PublishOutcome.TOO_LARGE
UNKNOWN, UNSENT = PublishOutcome.UNKNOWN, PublishOutcome.UNSENT


class FakeChannel:
    """A channel that stays open."""

    number = 1

    def __init__(self) -> None:
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class AnsweringConnection:
    """A connection that answers each publish at once, or never.

    `answer` maps the number of the publish to ACK, NACK or None.
    """

    blocked: str | None = None
    blocked_seconds = 0.0
    closed = False
    frame_max = 131_072
    queued = 0

    def __init__(self, answer: Callable[[int], int | None]) -> None:
        self.sinks: dict[int, FrameSink] = {}
        self.published = 0
        self.aborts = 0
        self._answer = answer

    async def connect(self) -> None:
        """There is nothing to connect to."""

    async def channel(self, *, confirms: bool) -> FakeChannel:
        assert confirms
        return FakeChannel()

    async def drain(self) -> None:
        """Everything is taken at once."""

    async def close(self) -> None:
        """There is nothing to close."""

    def abort(self) -> None:
        self.aborts += 1

    def write(self, buffer: bytes) -> None:
        position = 0
        while position < len(buffer):
            kind, channel, size = codec.frame_head.unpack_from(buffer, position)
            position += size + codec.OVERHEAD
            if kind == codec.METHOD:
                self.published += 1
                if (method := self._answer(self.published)) is not None:
                    self.sinks[channel].method(method, struct.pack(">QB", self.published, 0), 0)


@asynccontextmanager
async def publisher_on(connection: AnsweringConnection) -> AsyncIterator[RabbitPublisher]:
    publisher = RabbitPublisher(lambda: cast("Connection", connection), "publish", "ingest", timeout=5.0)
    await publisher.start()
    yield publisher
    await publisher.close()


def message(body: bytes = b"{}", **changes: Any) -> Message:
    fields = {"exchange": topology.EVENTS, "routing_key": "task.accepted", "message_id": "m1"} | changes
    return Message(body=body, **fields)


@in_virtual_time
async def test_message_above_the_maximum_is_refused_and_its_neighbours_are_confirmed() -> None:
    """RabbitMQ would close the channel, on every attempt, and with it lose the confirms of the neighbours."""
    connection = AnsweringConnection(lambda _: codec.ACK)
    largest, too_large = message(bytes(MAX_MESSAGE)), message(bytes(MAX_MESSAGE + 1), message_id="m2")
    with capture_logs() as logs:
        async with publisher_on(connection) as publisher:
            outcomes = await publisher.publish([message(), too_large, largest, too_large])
    assert outcomes == [CONFIRMED, TOO_LARGE, CONFIRMED, TOO_LARGE]
    assert connection.published == 2
    errors = [log for log in logs if log["log_level"] == "error"]
    assert [(log["event"], log["message_id"]) for log in errors] == [("message_too_large", "m2")] * 2
    assert (errors[0]["bytes"], errors[0]["most"]) == (MAX_MESSAGE + 1, MAX_MESSAGE)


def test_only_messages_that_are_not_sent_or_returned_are_certainly_not_taken() -> None:
    certain = {outcome for outcome in PublishOutcome if outcome.certainly_not_taken}
    assert certain == {PublishOutcome.UNROUTABLE, PublishOutcome.UNSENT, TOO_LARGE}


@in_virtual_time
async def test_channel_that_nacks_now_and_then_is_kept() -> None:
    """One queue is full, another one takes messages: for two minutes, every second message is nacked."""
    connection = AnsweringConnection(lambda number: codec.ACK if number % 2 else codec.NACK)
    async with publisher_on(connection) as publisher:
        for _ in range(240):
            assert await publisher.publish([message(), message()]) == [CONFIRMED, NACKED]
            await asyncio.sleep(0.5)
    assert connection.aborts == 0


@in_virtual_time
async def test_channel_that_only_nacks_is_replaced_after_15_seconds() -> None:
    """RabbitMQ 3.10 keeps nacking on a channel after a queue is no longer full."""
    connection = AnsweringConnection(lambda _: codec.NACK)
    async with publisher_on(connection) as publisher:
        for _ in range(15):
            assert await publisher.publish([message()]) == [NACKED]
            assert connection.aborts == 0
            await asyncio.sleep(1.0)
        await publisher.publish([message()])
    assert connection.aborts == 1


@in_virtual_time
async def test_channel_that_nacks_among_acks_is_replaced_after_ten_minutes() -> None:
    """The nacks can be the defect of RabbitMQ 3.10 that `versions` describes, while another queue confirms."""
    connection = AnsweringConnection(lambda number: codec.ACK if number % 2 else codec.NACK)
    async with publisher_on(connection) as publisher:
        for _ in range(600):
            await publisher.publish([message(), message()])
            assert connection.aborts == 0
            await asyncio.sleep(1.0)
        await publisher.publish([message(), message()])
    assert connection.aborts == 1


@in_virtual_time
async def test_channel_without_any_answer_is_replaced_after_10_seconds() -> None:
    """A RabbitMQ node that is separated from its cluster keeps the connection and confirms nothing."""
    connection = AnsweringConnection(lambda _: None)
    async with publisher_on(connection) as publisher:
        assert await publisher.publish([message()]) == [UNKNOWN]  # after its timeout of 5 s
        assert connection.aborts == 0
        assert await publisher.publish([message()]) == [UNKNOWN]
    assert connection.aborts == 1


@in_virtual_time
async def test_channel_that_answers_some_publishes_is_kept() -> None:
    """One queue has lost its quorum, another one confirms."""
    connection = AnsweringConnection(lambda number: codec.ACK if number % 2 else None)
    async with publisher_on(connection) as publisher:
        for _ in range(20):
            assert await publisher.publish([message(), message()]) == [CONFIRMED, UNKNOWN]
    assert connection.aborts == 0


@in_virtual_time
async def test_channel_is_kept_while_the_broker_blocks_publishers() -> None:
    """RabbitMQ does not read then, so what was written before is answered only after the alarm."""
    connection = AnsweringConnection(lambda _: None)
    async with publisher_on(connection) as publisher:
        assert await publisher.publish([message()]) == [UNKNOWN]
        connection.blocked = "low on memory"
        for _ in range(10):
            assert await publisher.publish([message()]) == [UNSENT]
            await asyncio.sleep(10)
        connection.blocked = None
        assert await publisher.publish([message()]) == [UNKNOWN]
    assert connection.aborts == 0
