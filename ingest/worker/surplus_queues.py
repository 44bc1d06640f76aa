"""Consumes queues of the shim beyond the number that the worker knows, as long as they exist and have messages.

Shims and workers get the numbers of queues from settings, and are not restarted at the same moment. So a shim can use a
queue that this worker does not know yet, and messages can wait in one that no shim uses any more.
"""

import asyncio
from typing import Final

import structlog

from ingest.domain.errors import BrokerUnavailable
from ingest.domain.ports import Broker
from ingest.domain.topology import Layout
from ingest.waiting import wait_for_event
from ingest.worker.delivery_loop import DeliveryLoop

INTERVAL: Final = 15.0
"""Seconds between two looks."""
_EMPTY_LOOKS: Final = 3
"""Looks at an empty queue after which it is left: only then an operator can delete it."""

_log = structlog.get_logger(__name__)


class SurplusQueues:
    """Consumes surplus queues while they have messages.

    Args:
        broker: says which of them exist, and provides the consumers.
        loop: attempts the deliveries.
        layout: the queues that the worker consumes anyway.
        prefetch: the most unacknowledged deliveries of each queue.
        stopping: ends `run`.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        broker: Broker,
        loop: DeliveryLoop,
        layout: Layout,
        prefetch: int,
        stopping: asyncio.Event,
        interval: float = INTERVAL,
    ) -> None:
        self._broker = broker
        self._loop = loop
        self._layout = layout
        self._prefetch = prefetch
        self._stopping = stopping
        self._interval = interval
        self._empty: dict[str, int] = {}
        """Consumed queues, and at how many looks in succession each was empty."""

    async def run(self) -> None:
        """Look until the worker stops."""
        await self.update()
        while not await wait_for_event(self._stopping, self._interval):
            await self.update()

    async def update(self) -> None:
        """Consume those that have messages, and leave those that are empty or have gone. In an outage, do nothing."""
        try:
            waiting = await self._waiting()
        except BrokerUnavailable as error:
            _log.debug("surplus_queues_not_read", error=str(error))  # the outage itself is logged elsewhere
            return
        for queue in [*self._empty]:
            # What is held must not be returned, which would count as a failed delivery.
            in_use = waiting.get(queue) or self._loop.held(queue)
            self._empty[queue] = 0 if in_use else self._empty[queue] + 1
            if queue not in waiting or self._empty[queue] >= _EMPTY_LOOKS:
                del self._empty[queue]
                await self._loop.remove(queue)
                _log.info("surplus_queue_left", queue=queue)
        for queue, messages in waiting.items():
            if messages and queue not in self._empty and not self._stopping.is_set():
                if not await self._loop.consume(self._broker, queue, self._prefetch):
                    return
                self._empty[queue] = 0
                _log.warning("surplus_queue_consumed", queue=queue, messages=messages)

    async def _waiting(self) -> dict[str, int]:
        """Return the queues that exist, with the number of messages. The numbers of each class have no gaps."""
        waiting: dict[str, int] = {}
        classes = [names for names in self._layout.surplus if names]
        position = 0
        while classes:
            depths = await self._broker.depths([names[position] for names in classes])
            waiting |= {name: messages for name, messages in depths.items() if messages is not None}
            position += 1
            classes = [names for names in classes if position < len(names) and names[position - 1] in waiting]
        return waiting
