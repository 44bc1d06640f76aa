"""Remembers the latest events that a process has published. `ingest dev` shows them in its console."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ingest.broker.decorators import BrokerDecorator, PublisherDecorator
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.ports import Broker, Consumer, Publisher
from ingest.domain.topology import EVENTS

MAX_EVENTS: Final = 200
"""Events that are remembered."""
MAX_BODY: Final = 64 * 1024
"""Bytes of the largest body that is kept."""
MAX_BYTES: Final = 1024 * 1024
"""Bytes of all bodies that are kept. If there are more, the oldest lose their bodies."""


class RecentEvent(msgspec.Struct):
    """An event.

    `at` is the time at which it was confirmed, in Unix seconds; `name` is its type without the reversed domain. `ids`
    are those of its task, batch and message, as far as it has them; `task_type` is empty unless it is about one task.
    `body` is the CloudEvent as JSON, and None if it is not kept; `size` is its length in bytes.
    """

    at: float
    name: str
    cust_id: str
    ids: list[str]
    task_type: str
    size: int
    body: bytes | None


class _Data(msgspec.Struct):
    cust_id: str
    task_id: str = ""
    batch_id: str = ""
    message_id: str = ""
    type: str = ""


class _Event(msgspec.Struct):
    type: str
    data: _Data


_decode = msgspec.json.Decoder(_Event).decode


class RecentEvents:
    """The latest events.

    Args:
        clock: Unix time in seconds.
        max_bytes: see MAX_BYTES.
    """

    def __init__(self, clock: Callable[[], float] = time.time, max_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._events: deque[RecentEvent] = deque()
        self._bytes = 0
        self.count = 0
        """All events since the start."""

    def add(self, bodies: Sequence[bytes]) -> None:
        """Add events, oldest first. Each is a CloudEvent of `domain.events`."""
        self.count += len(bodies)
        now = self._clock()
        for body in bodies[-MAX_EVENTS:]:
            event = _decode(body)
            data = event.data
            name = ".".join(event.type.split(".")[-2:])
            ids = [id_ for id_ in (data.task_id, data.batch_id, data.message_id) if id_]
            kept = body if len(body) <= MAX_BODY else None
            self._bytes += len(kept or b"")
            self._events.append(RecentEvent(now, name, data.cust_id, ids, data.type, len(body), kept))
        while len(self._events) > MAX_EVENTS:
            self._bytes -= len(self._events.popleft().body or b"")
        for oldest in self._events:
            if self._bytes <= self._max_bytes:
                break
            self._bytes -= len(oldest.body or b"")
            oldest.body = None

    def latest(self) -> list[RecentEvent]:
        """Return the events, newest first."""
        return list(reversed(self._events))


class RecordedBroker(BrokerDecorator):
    """Remembers what the publishers of a broker publish."""

    def __init__(self, broker: Broker, events: RecentEvents) -> None:
        super().__init__(broker)
        self._events = events

    async def publisher(self, connections: int = 1) -> Publisher:
        return RecordedPublisher(await self._broker.publisher(connections), self._events)

    async def consumer(self, queue: str, prefetch: int) -> Consumer:
        return await self._broker.consumer(queue, prefetch)


class RecordedPublisher(PublisherDecorator):
    """Remembers each confirmed event."""

    def __init__(self, publisher: Publisher, events: RecentEvents) -> None:
        super().__init__(publisher)
        self._events = events

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        outcomes = await self._publisher.publish(messages)
        self._events.add(
            [
                message.body
                for message, outcome in zip(messages, outcomes, strict=True)
                if message.exchange == EVENTS and outcome is PublishOutcome.CONFIRMED
            ]
        )
        return outcomes
