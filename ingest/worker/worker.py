"""Consumes the ingest queues and keeps cohorts of deliveries going, until told to stop."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from ingest.admission import Admission
from ingest.domain.messages import Delivery
from ingest.domain.metrics import NO_METER, Meter
from ingest.domain.ports import Broker, Consumer, Store
from ingest.domain.topology import INGEST_BATCHES
from ingest.worker.cohort import Cohorts, Left
from ingest.worker.intake import Intake

_BUSY_PAUSES: Final = (0.05, 1.0)
_FAILED_PAUSES: Final = (0.1, 5.0)
"""First and longest pause before another attempt, in seconds."""
_UNDER_WAY: Final = 4
"""Cohorts of one queue under way at once: while one waits for confirms the next is made."""

_log = structlog.get_logger(__name__)


class Worker:
    """One consumer of each ingest queue.

    Args:
        store: ledger, quotas and customers.
        broker: where the queues are.
        admission: on the same store.
        trusted_users: AMQP users of the service itself.
        prefetch: queue to most deliveries unacknowledged at a time.
        meter: what is counted.
    """

    def __init__(
        self,
        *,
        store: Store,
        broker: Broker,
        admission: Admission,
        trusted_users: frozenset[str],
        prefetch: Mapping[str, int],
        meter: Meter = NO_METER,
    ) -> None:
        self._store = store
        self._broker = broker
        self._admission = admission
        self._trusted_users = trusted_users
        self._prefetch = prefetch
        self._meter = meter
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop`; then finish what was delivered, acknowledge it and close. Cancelling closes at once."""
        publisher = await self._broker.publisher()
        intake = Intake(self._store, self._trusted_users)
        cohorts = Cohorts(self._store, publisher, self._admission, intake, self._meter)
        lanes = []
        try:
            for queue, prefetch in self._prefetch.items():
                consumer = await self._broker.consumer(queue, prefetch)
                # A batch is a thousand tasks: one is a cohort.
                lanes.append(_Lane(consumer, cohorts, self._stopping, 1 if queue == INGEST_BATCHES else prefetch))
            _log.info("working", prefetch=dict(self._prefetch))
            async with asyncio.TaskGroup() as group:
                for lane in lanes:
                    group.create_task(lane.run())
            _log.info("worker stopped")
        finally:
            for lane in lanes:
                await lane.consumer.close()
            await publisher.close()

    def stop(self) -> None:
        """Take no more, finish what is in flight. To be called in the event loop's thread."""
        self._stopping.set()


class _Lane:
    """One queue: receives, attempts, and tries again what could not be finished."""

    def __init__(self, consumer: Consumer, cohorts: Cohorts, stopping: asyncio.Event, size: int) -> None:
        self.consumer = consumer
        self._cohorts = cohorts
        self._stopping = stopping
        self._size = size
        self._slots = asyncio.Semaphore(_UNDER_WAY)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stop_in_time())
            while deliveries := await self.consumer.receive():
                for start in range(0, len(deliveries), self._size):
                    await self._slots.acquire()
                    group.create_task(self._carry_through(deliveries[start : start + self._size]))

    async def _stop_in_time(self) -> None:
        await self._stopping.wait()
        await self.consumer.stop()

    async def _carry_through(self, deliveries: Sequence[Delivery]) -> None:
        """Attempt until nothing is left, the deliveries are lost, or it is time to stop. Holds a slot on entry."""
        busy, failed = _BUSY_PAUSES[0], _FAILED_PAUSES[0]
        while True:
            try:
                left = await self._attempt(deliveries)
            finally:
                self._slots.release()
            if not left.busy and not left.failed:
                return
            pause = failed if left.failed else busy
            if await self._stopped_within(pause * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter
                return  # the broker delivers them again
            if left.failed:
                failed = min(failed * 2, _FAILED_PAUSES[1])
            else:
                busy = min(busy * 2, _BUSY_PAUSES[1])
            await self._slots.acquire()
            deliveries = [each for each in (*left.busy, *left.failed) if self.consumer.alive(each)]

    async def _attempt(self, deliveries: Sequence[Delivery]) -> Left:
        try:
            return await self._cohorts.attempt(self.consumer, deliveries)
        except Exception:  # noqa: BLE001 - the worker outlives its defects
            # A defect of ours. Find the delivery that brings it out and let the broker count it: the delivery limit
            # ends in the dead-letter queue, and the others get through.
            _log.exception("attempt failed", submissions=len(deliveries))
            if len(deliveries) == 1:
                await self.consumer.requeue(deliveries)
                return Left()
        left = Left()
        for delivery in deliveries:
            one = await self._attempt([delivery])
            left.busy += one.busy
            left.failed += one.failed
        return left

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True
