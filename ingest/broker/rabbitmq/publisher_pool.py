"""Publishing over several connections.

RabbitMQ routes what arrives on one connection on one core, so two are faster.
"""

import asyncio
from collections.abc import Sequence

from ingest.broker.rabbitmq.publisher import RabbitPublisher
from ingest.domain.messages import Message, PublishOutcome


class PublisherPool:
    """`domain.ports.Publisher`. Each call uses one connection, so that its messages keep their order."""

    def __init__(self, publishers: Sequence[RabbitPublisher]) -> None:
        self._publishers = publishers
        self._in_progress = [0] * len(publishers)

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        index = min(range(len(self._publishers)), key=self._load)
        self._in_progress[index] += len(messages)
        try:
            return await self._publishers[index].publish(messages)
        finally:
            self._in_progress[index] -= len(messages)

    def _load(self, index: int) -> tuple[bool, int]:
        # A lost connection has nothing in progress; it must still come last.
        return not self._publishers[index].writable, self._in_progress[index]

    async def ready(self) -> None:
        """One connection that takes publishes is enough: the others reconnect by themselves."""
        answers = await asyncio.gather(*[pub.ready() for pub in self._publishers], return_exceptions=True)
        problems = [answer for answer in answers if answer is not None]
        if len(problems) == len(answers):
            raise problems[0]

    async def close(self) -> None:
        for publisher in self._publishers:
            await publisher.close()
