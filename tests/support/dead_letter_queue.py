"""`ingest.dead` in memory, and a publisher of dead letters and submissions."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ingest.backends import DeadLetterAccess
from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Publisher
from tests.support.deliveries import in_dead_queue
from tests.support.fakes import ScriptedPublisher

SERVICE = frozenset({"ingest"})


class MemoryDeadLetters:
    """`domain.ports.DeadLetterQueue`, as the user `ingest` sees it.

    `submitted` are published submissions. `known_size` is what `size` returns; `readings` counts how often
    it was read; `outcome` is that of each publish; `loses_removals`: it removes nothing, as if the process had crashed
    before; `readers_hang`: who opens it only to read waits for ever;
    `held_by_others`: as in `DeadLetterAccess`; `may_close`: closing waits for it; `open_now` counts who has it open.
    """

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.submitted: list[Message] = []
        self.known_size: int | None = None
        self.readings = 0
        self.outcome = PublishOutcome.CONFIRMED
        self.loses_removals = False
        self.readers_hang = False
        self.held_by_others = False
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.open_now = 0
        self._tokens = itertools.count()

    def add(self, message: Message, user_id: str | None = "ingest") -> None:
        """Add a message that a user has published."""
        token = next(self._tokens)
        self.deliveries.append(
            in_dead_queue(
                message,
                user_id,
                timestamp=message.timestamp,
                type=message.type or None,
                deaths_checked=True,
                token=token,
            )
        )

    async def count(self) -> int:
        return len(self.deliveries)

    async def size(self) -> int | None:
        return self.known_size

    async def browse(self) -> AsyncIterator[list[Delivery]]:
        self.readings += 1
        present = list(self.deliveries)
        for start in range(0, len(present), 3):
            yield present[start : start + 3]

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        tokens = {delivery.token for delivery in deliveries}
        kept = [delivery for delivery in self.deliveries if delivery.token not in tokens]
        assert len(kept) == len(self.deliveries) - len(deliveries), "removed twice"
        if not self.loses_removals:
            self.deliveries = kept

    async def close(self) -> None:
        """There is nothing to return."""

    @asynccontextmanager
    async def open(self, *, change: bool) -> AsyncIterator[DeadLetterAccess]:
        """Open it, as `BrokerBackend.open_dead_letters` does."""

        async def publisher() -> Publisher:
            assert change, "it was opened only to read"
            return _AddingPublisher(self)

        self.open_now += 1
        try:
            if self.readers_hang and not change:
                await asyncio.Event().wait()
            yield DeadLetterAccess(self, publisher, SERVICE, lambda: self.held_by_others)
        finally:
            await self.may_close.wait()
            self.open_now -= 1


class _AddingPublisher(ScriptedPublisher):
    """Adds what it publishes to the queue, or to `submitted`, unless the outcome says that it was not taken."""

    def __init__(self, queue: MemoryDeadLetters) -> None:
        super().__init__(queue.outcome)
        self._queue = queue

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        if not self.outcome.certainly_not_taken:
            for message in messages:
                if message.exchange == topology.DEAD:
                    self._queue.add(message)
                else:
                    self._queue.submitted.append(message)
        return await super().publish(messages)

    async def ready(self) -> None:
        """It takes publishes, whatever their outcome will be."""
