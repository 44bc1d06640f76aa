"""Collects the state of a running system: broker, store, processes, dead letters."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from ingest.backends import StoreBackend, broker_backend, store_backend
from ingest.domain import topology
from ingest.domain.errors import ConfigurationError, IngestError
from ingest.domain.overview import BrokerState, DeadReason, Overview, StoreState
from ingest.operations.dead_letters import Group, Selection, add_to, select
from ingest.operations.scrape import Scraper
from ingest.settings import Settings

_MAX_DEAD_LETTERS: Final = 2000
_DEAD_LETTER_INTERVAL: Final = 30.0
"""Seconds. On RabbitMQ reading dead letters holds them for a moment, so it is done rarely and only for a few."""


class StatusCollector:
    """Collects repeatedly. It remembers counters, for rates, and the dead letters it has read.

    Args:
        settings: say which broker and store.
        urls: `http://host:port` of processes' metrics.
        clock: Unix time in seconds.
        monotonic: monotonic time in seconds; it measures how long ago the dead letters were read.
    """

    def __init__(
        self,
        settings: Settings,
        urls: list[str],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._broker = broker_backend(settings)
        self._store: StoreBackend | None = None
        self._store_problem = ""
        try:
            self._store = store_backend(settings)
        except ConfigurationError as problem:
            self._store_problem = str(problem)  # the broker's state does not depend on it
        self._scraper = Scraper(urls)
        self._dead: list[Group] | None = None
        self._dead_problem = ""
        """Why they could not be read the last time."""
        self._dead_read_at = float("-inf")
        self._dead_depth = -1

    async def collect_once(self) -> Overview:
        """Collect once and close."""
        try:
            return await self.collect()
        finally:
            await self.close()

    async def collect(self) -> Overview:
        """Collect the state now. What is unavailable is part of it. Raises ConfigurationError."""
        broker, store, (processes, problems) = await asyncio.gather(
            self._broker.state(), self._store_state(), self._scraper.scrape()
        )
        note = await self._read_dead_letters(broker)
        now = self._clock()
        dead = None if self._dead is None else [_reason(group, now) for group in self._dead]
        return Overview(
            at=now,
            broker=_with_oldest_dead(broker, dead or []),
            store=store,
            processes=processes,
            process_problems=problems,
            dead=dead,
            dead_note=note,
        )

    async def close(self) -> None:
        """Close what stays open between two collections."""
        if self._store is not None:
            await self._store.close()

    async def _store_state(self) -> StoreState:
        if self._store is None:
            return StoreState(name="unknown", problems=[self._store_problem])
        return await self._store.state()

    async def _read_dead_letters(self, broker: BrokerState) -> str:
        """Read the dead letters if there are new ones and few; return a note to show with them."""
        queue = next((queue for queue in broker.queues if queue.name == topology.INGEST_DEAD), None)
        if queue is None:
            self._dead, self._dead_depth = None, -1
            return "unknown"
        if queue.ready == 0 and not queue.unacked:
            self._dead, self._dead_depth = [], 0
            return ""
        if queue.ready > _MAX_DEAD_LETTERS:
            self._dead, self._dead_depth = None, -1
            return f"{queue.ready:,}: too many to read here, use `ingest dlq list`"
        if queue.consumers:
            return "another consumer is reading them"
        is_new = queue.ready != self._dead_depth
        if is_new and self._monotonic() - self._dead_read_at >= _DEAD_LETTER_INTERVAL:
            self._dead_read_at = self._monotonic()
            try:
                self._dead = await self._groups()
            except IngestError as error:
                self._dead, self._dead_depth, self._dead_problem = None, -1, str(error)
                return self._dead_problem
            self._dead_depth, self._dead_problem = queue.ready, ""
        if self._dead is None:
            return self._dead_problem or "not read yet"
        return "" if queue.ready == self._dead_depth else f"{queue.ready} now"

    async def _groups(self) -> list[Group]:
        groups: dict[str, Group] = {}
        async with self._broker.open_dead_letters(change=False) as access:
            async for dead_letters in select(access.queue, Selection(), access.trusted_users):
                add_to(groups, dead_letters)
        return sorted(groups.values(), key=lambda group: -group.count)


def _reason(group: Group, now: float) -> DeadReason:
    oldest = None if group.oldest is None else max(0.0, now - group.oldest)
    return DeadReason(reason=group.reason, count=group.count, oldest=oldest)


def _with_oldest_dead(broker: BrokerState, dead: list[DeadReason]) -> BrokerState:
    """Return the state with the age of the oldest dead letter, which the broker does not know."""
    oldest = max((reason.oldest for reason in dead if reason.oldest is not None), default=None)
    if oldest is None:
        return broker
    queues = [
        msgspec.structs.replace(queue, oldest=oldest) if queue.name == topology.INGEST_DEAD else queue
        for queue in broker.queues
    ]
    return msgspec.structs.replace(broker, queues=queues)
