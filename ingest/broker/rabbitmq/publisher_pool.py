"""Publishing over several connections: RabbitMQ takes each in turn, so what goes out on two is routed on two cores."""

import asyncio
from collections.abc import Sequence

from ingest.broker.rabbitmq.publisher import RabbitPublisher
from ingest.domain.messages import Message, PublishOutcome


class PublisherPool:
    """`domain.ports.Publisher`: each call as a whole on one connection, so that its messages keep their order."""

    def __init__(self, publishers: Sequence[RabbitPublisher]) -> None:
        self._publishers = publishers
        self._under_way = [0] * len(publishers)

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        index = min(range(len(self._publishers)), key=self._busy)
        self._under_way[index] += len(messages)
        try:
            return await self._publishers[index].publish(messages)
        finally:
            self._under_way[index] -= len(messages)

    def _busy(self, index: int) -> tuple[bool, int]:
        # One that is lost has nothing under way, and is the last to be taken all the same.
        return not self._publishers[index].writable, self._under_way[index]

    async def ready(self) -> None:
        """One that takes publishes is enough: the others come back by themselves."""
        answers = await asyncio.gather(*[each.ready() for each in self._publishers], return_exceptions=True)
        problems = [answer for answer in answers if answer is not None]
        if len(problems) == len(answers):
            raise problems[0]

    async def close(self) -> None:
        for each in self._publishers:
            await each.close()
