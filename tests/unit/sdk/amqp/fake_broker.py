"""A broker in memory for the publisher, whose answers a test chooses. It runs in virtual time."""

import asyncio
from collections.abc import Callable

from asg_gateway._backoff import Backoff
from asg_gateway._errors import BrokerUnavailableError
from asg_gateway.amqp._producing.channels import Failure, Unconfirmed
from asg_gateway.amqp._producing.link import Link
from asg_gateway.amqp._producing.messages import Composer, Message
from asg_gateway.amqp._producing.publisher import Publisher
from asg_gateway.amqp._producing.room import Room

DEADLINE = 100.0
CONFIRM_TIMEOUT = 10.0
TASK = {
    "type": "sentiment",
    "data_url": "https://a.example/",
    "label_spec": {"question": "Mood?", "options": ["good", "bad"]},
}


def message(key: str) -> Message:
    return Composer("acme", "acme").task(TASK, key)[0]


class FakeChannel:
    """Answers after `broker.delay` seconds with what `broker.answer` says, unless RabbitMQ has closed it."""

    def __init__(self, broker: "FakeBroker", number: int) -> None:
        self.broker = broker
        self.number = number
        self.is_closed = False
        self.in_flight: set[str] = set()
        self.was_closed_by: BaseException | None = None
        self._ended = asyncio.Event()

    async def publish(self, message: Message, seconds: float) -> Unconfirmed | None:
        assert message.key not in self.in_flight, "aiormq would confuse the two"
        self.broker.published.append((message.key, self.number))
        self.in_flight.add(message.key)
        self.broker.most_in_flight = max(self.broker.most_in_flight, len(self.in_flight))
        try:
            answer = self.broker.answer(message, self)
            if answer is Failure.REFUSED:
                await asyncio.sleep(self.broker.delay / 2)
                self.end(self.broker.refusal)
            elif answer is Failure.UNANSWERED:
                await asyncio.sleep(seconds)
                return Unconfirmed(Failure.UNANSWERED, TimeoutError())
            else:
                await self._wait_unless_ended()
            if self.was_closed_by is not None:
                kind = Failure.REFUSED if self.was_closed_by is self.broker.refusal else Failure.LOST
                return Unconfirmed(kind, self.was_closed_by)
            return None if answer is None else Unconfirmed(answer, RuntimeError("as the test wants"))
        finally:
            self.in_flight.remove(message.key)

    async def _wait_unless_ended(self) -> None:
        try:
            async with asyncio.timeout(self.broker.delay):
                await self._ended.wait()
        except TimeoutError:
            pass

    def end(self, error: BaseException) -> None:
        """Close it as RabbitMQ does: everything in flight gets the error."""
        self.is_closed = True
        self.was_closed_by = error
        self._ended.set()

    async def close(self) -> None:
        assert not self.in_flight, "messages in flight would be lost"
        self.is_closed = True
        self.broker.closed.append(self.number)


class FakeBroker:
    """Connector and connection in one.

    Attributes:
        answer: the outcome of a publish; None confirms it.
        refusal: the error of a channel that is closed because of a message.
        unreachable: how many attempts to connect fail.
        published: (key, number of the channel) of every publish.
    """

    def __init__(self) -> None:
        self.answer: Callable[[Message, FakeChannel], Failure | None] = lambda _message, _channel: None
        self.refusal: BaseException = RuntimeError("refused")
        self.delay = 0.01
        self.unreachable = 0
        self.connections = 0
        self.published: list[tuple[str, int]] = []
        self.closed: list[int] = []
        self.channels: list[FakeChannel] = []
        self.most_in_flight = 0
        self.is_open = False
        self.link = Link(self, Backoff(1.0, 8.0, lambda: 1.0))

    def publisher(self, in_flight: int = 100, size: int = 1_000_000) -> Publisher:
        pauses = lambda: Backoff(0.1, 5.0, lambda: 1.0)  # noqa: E731
        return Publisher(self.link, Room(in_flight, size), DEADLINE, CONFIRM_TIMEOUT, pauses)

    async def connect(self) -> "FakeBroker":
        self.connections += 1
        if self.connections <= self.unreachable:
            raise BrokerUnavailableError("RabbitMQ at host:1: connection refused")
        self.is_open = True
        return self

    async def channel(self) -> FakeChannel:
        self.channels.append(FakeChannel(self, len(self.channels)))
        return self.channels[-1]

    async def close(self) -> None:
        self.is_open = False

    def __str__(self) -> str:
        return "host:1"
