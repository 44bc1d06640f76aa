"""Shows the events that a process publishes, one short line each. `ingest dev` uses it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ingest.broker.decorators import BrokerDecorator, PublisherDecorator
from ingest.domain.display import shown
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.ports import Broker, Consumer, Publisher
from ingest.domain.topology import EVENTS

MAX_LINES: Final = 20
"""Events of one publish that are shown; the others are counted."""

Show = Callable[[str], None]
"""Prints a line."""


class _Data(msgspec.Struct):
    cust_id: str
    task_id: str | None = None
    batch_id: str | None = None
    message_id: str = ""
    reason: str = ""

    @property
    def id(self) -> str:
        return self.task_id or self.batch_id or self.message_id


class _Event(msgspec.Struct):
    type: str
    data: _Data

    @property
    def name(self) -> str:
        """The type without the reversed domain."""
        return ".".join(self.type.split(".")[-2:])


_decode = msgspec.json.Decoder(_Event).decode


class ShownBroker(BrokerDecorator):
    """Shows what the publishers of a broker publish."""

    def __init__(self, broker: Broker, show: Show) -> None:
        super().__init__(broker)
        self._show = show

    async def publisher(self, connections: int = 1) -> Publisher:
        return ShownPublisher(await self._broker.publisher(connections), self._show)

    async def consumer(self, queue: str, prefetch: int) -> Consumer:
        return await self._broker.consumer(queue, prefetch)


class ShownPublisher(PublisherDecorator):
    """Shows each confirmed event: its type, its task, batch or message, and its customer."""

    def __init__(self, publisher: Publisher, show: Show) -> None:
        super().__init__(publisher)
        self._show = show

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        outcomes = await self._publisher.publish(messages)
        events = [
            _decode(message.body)
            for message, outcome in zip(messages, outcomes, strict=True)
            if message.exchange == EVENTS and outcome is PublishOutcome.CONFIRMED
        ]
        for event in events[:MAX_LINES]:
            data = event.data
            self._show(shown(f"{event.name:<20} {data.id}  {data.cust_id}  {data.reason}".rstrip()))
        for name, count in Counter([event.name for event in events[MAX_LINES:]]).items():
            self._show(f"{shown(name):<20} and {count:,} more")
        return outcomes
