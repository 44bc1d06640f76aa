"""Collects the state of a running system: broker, store, processes, dead letters."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from ingest.backends import StoreBackend, broker_backend, store_backend
from ingest.domain import topology
from ingest.domain.errors import ConfigurationError
from ingest.domain.overview import BrokerState, DeadReason, Overview, StoreState
from ingest.operations.dead_reasons import DeadReasons, QueuedDeadReasons
from ingest.operations.scrape import Scraper
from ingest.settings import Settings


class StatusCollector:
    """Collects repeatedly. It remembers counters, for rates.

    Args:
        settings: say which broker and store.
        urls: `http://host:port` of processes' metrics.
        clock: Unix time in seconds.
        dead: knows the dead letters; by default it reads them itself.
    """

    def __init__(
        self,
        settings: Settings,
        urls: list[str],
        clock: Callable[[], float] = time.time,
        dead: DeadReasons | None = None,
    ) -> None:
        self._clock = clock
        self._broker = broker_backend(settings)
        self._dead = dead or QueuedDeadReasons(self._broker, clock)
        self._store: StoreBackend | None = None
        self._store_problem = ""
        try:
            self._store = store_backend(settings)
        except ConfigurationError as problem:
            self._store_problem = str(problem)  # the broker's state does not depend on it
        self._scraper = Scraper(urls)

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
        queue = next((queue for queue in broker.queues if queue.name == topology.INGEST_DEAD), None)
        dead, note = await self._dead.read(queue)
        return Overview(
            at=self._clock(),
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
