"""Consumes the queues that belong to single direct producers, as the store lists them."""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ports import Broker, Registry
from ingest.domain.topology import own_queues
from ingest.waiting import wait_for_event
from ingest.worker.delivery_loop import DeliveryLoop

INTERVAL: Final = 5.0
"""Seconds between two reads of the producers."""

_log = structlog.get_logger(__name__)


class OwnQueues:
    """Consumes the own queues of each producer from its registration until its removal.

    Args:
        registry: names the producers.
        broker: provides the consumers.
        loop: attempts the deliveries.
        prefetch: the most unacknowledged deliveries, of a queue for tasks and of one for batches.
        stopping: ends `run`.
    """

    def __init__(
        self,
        registry: Registry,
        broker: Broker,
        loop: DeliveryLoop,
        prefetch: tuple[int, int],
        stopping: asyncio.Event,
    ) -> None:
        self._registry = registry
        self._broker = broker
        self._loop = loop
        self._prefetch = prefetch
        self._stopping = stopping
        self._consumed: dict[str, float] = {}

    async def run(self) -> None:
        """Update until the worker stops."""
        await self.update()
        while not await wait_for_event(self._stopping, INTERVAL):
            await self.update()

    async def update(self) -> None:
        """Consume the queues of new producers, and those of removed ones no longer.

        If the store is unavailable, nothing changes.
        """
        try:
            weights = await self._registry.producers()
        except StoreUnavailable as error:
            _log.debug("producers_not_read", error=str(error))  # the outage itself is logged elsewhere
            return
        if self._stopping.is_set():
            return
        self._loop.weights = _by_queue(weights)
        for cust_id in sorted(weights.keys() - self._consumed.keys()):
            for queue, prefetch in zip(own_queues(cust_id), self._prefetch, strict=True):
                if not await self._loop.consume(self._broker, queue.name, prefetch):
                    return
            _log.info("own_queues_consumed", cust_id=cust_id)
        for cust_id in sorted(self._consumed.keys() - weights.keys()):
            await asyncio.gather(*[self._loop.remove(queue.name) for queue in own_queues(cust_id)])
            _log.warning("own_queues_left", cust_id=cust_id)
        self._consumed = weights


def _by_queue(weights: Mapping[str, float]) -> dict[str, float]:
    return {queue.name: weight for cust_id, weight in weights.items() for queue in own_queues(cust_id)}
