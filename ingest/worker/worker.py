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
from ingest.worker.breaker import PAUSES, BreakerState, CircuitBreaker, keep_hands_free
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.processor import DeliveryProcessor, Unfinished

_BUSY_PAUSES: Final = (0.05, 1.0)
"""First and longest pause before another attempt at what somebody else is at, in seconds."""
_DEFECT_PAUSE: Final = 0.2
"""Seconds before a delivery that brings out a defect goes back."""
OUTAGE_HOLD: Final = 600.0
"""Seconds for which deliveries are held through an outage."""
_UNDER_WAY: Final = 3
"""Cohorts of one queue under way at once: while one waits for confirms the next is made, and one more gathers."""
_PUBLISHING: Final = 2
"""Connections that events go out on: RabbitMQ routes those of one on one core, which is less than a worker makes."""

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
        outage_hold: seconds for which deliveries are held through an outage, well below RabbitMQ's `consumer_timeout`.
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
        outage_hold: float = OUTAGE_HOLD,
    ) -> None:
        self._store = store
        self._broker = broker
        self._admission = admission
        self._trusted_users = trusted_users
        self._prefetch = prefetch
        self._meter = meter
        self._outage_hold = outage_hold
        self._breaker = CircuitBreaker()
        self._stopping = asyncio.Event()

    @property
    def breaker(self) -> BreakerState:
        """Whether an outage keeps it from working, and since when."""
        return self._breaker.state

    async def run(self) -> None:
        """Work until `stop`; then finish what was delivered, acknowledge it and close. Cancelling closes at once."""
        publisher = await self._broker.publisher(_PUBLISHING)
        intake = DeliveryClassifier(self._store, self._trusted_users)
        cohorts = DeliveryProcessor(self._store, publisher, self._admission, intake, self._meter)
        lanes = []
        try:
            for queue, prefetch in self._prefetch.items():
                consumer = await self._broker.consumer(queue, prefetch)
                # A batch is a thousand tasks: one is a cohort.
                size = 1 if queue == INGEST_BATCHES else max(1, prefetch // (_UNDER_WAY + 1))
                lanes.append(QueueConsumerLoop(consumer, cohorts, self._breaker, self._stopping, size))
            _log.info("working", prefetch=dict(self._prefetch))
            async with asyncio.TaskGroup() as group:
                consumers = [lane.consumer for lane in lanes]
                ready = [self._store.ready, publisher.ready]
                group.create_task(keep_hands_free(self._breaker, consumers, ready, self._outage_hold))
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
        self._breaker.stop()


class QueueConsumerLoop:
    """One queue: receives, attempts, and tries again what could not be finished.

    `size`: most deliveries in a cohort; while one is under way a further one waits until it is full: large cohorts cost
    less, to RabbitMQ too. There is no timer: light traffic makes small cohorts, at once.
    """

    def __init__(
        self,
        consumer: Consumer,
        cohorts: DeliveryProcessor,
        breaker: CircuitBreaker,
        stopping: asyncio.Event,
        size: int,
    ) -> None:
        self.consumer = consumer
        self._cohorts = cohorts
        self._breaker = breaker
        self._stopping = stopping
        self._size = size
        self._waiting: list[Delivery] = []
        self._under_way = 0
        self._group = asyncio.TaskGroup()

    async def run(self) -> None:
        async with self._group:
            self._group.create_task(self._stop_in_time())
            while deliveries := await self.consumer.receive():
                if len(self._waiting) > self._size * _UNDER_WAY:  # perhaps of a connection that was lost
                    self._waiting = list(filter(self.consumer.alive, self._waiting))
                self._waiting += deliveries
                self._start()

    def _start(self) -> None:
        """Make cohorts of what waits, as far as that may be."""
        while self._waiting and self._under_way < (_UNDER_WAY if len(self._waiting) >= self._size else 1):
            cohort, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            self._under_way += 1
            self._group.create_task(self._carry_through(cohort))

    async def _stop_in_time(self) -> None:
        await self._stopping.wait()
        await self.consumer.stop()

    async def _carry_through(self, deliveries: Sequence[Delivery]) -> None:
        """Attempt until nothing is left, the deliveries are lost, or it is time to stop. Under way on entry."""
        left = await self._attempt_when_possible(deliveries)
        # Further attempts keep nobody waiting: few are at what is busy, and in an outage the brake decides.
        self._under_way -= 1
        self._start()
        busy, failed = _BUSY_PAUSES[0], PAUSES[0]
        while left.busy or left.failed:
            pause = failed if left.failed else busy
            # With the brake on it is the brake that decides on the next attempt.
            if not self._breaker.state.on and await self._stopped_within(pause * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter
                return  # the broker delivers them again
            if left.failed:
                failed = min(failed * 2, PAUSES[1])
            else:
                busy = min(busy * 2, _BUSY_PAUSES[1])
            left = await self._attempt_when_possible([*left.busy, *left.failed])

    async def _attempt_when_possible(self, deliveries: Sequence[Delivery]) -> Unfinished:
        """One attempt, once the brake lets it through, at those deliveries that are still alive."""
        if not await self._breaker.passed():
            return Unfinished()  # time to stop: the broker delivers them again
        got_somewhere = None
        try:
            alive = [each for each in deliveries if self.consumer.alive(each)]
            if not alive:
                return Unfinished()
            left = await self._attempt(alive)
            got_somewhere = not left.failed or len(left.busy) + len(left.failed) < len(alive)
            return left
        finally:
            self._breaker.tell(got_somewhere)

    async def _attempt(self, deliveries: Sequence[Delivery]) -> Unfinished:
        try:
            return await self._cohorts.attempt(self.consumer, deliveries)
        except Exception:  # noqa: BLE001 - the worker outlives its defects
            # A defect of ours. Find the delivery that brings it out and let the broker count it: the delivery limit
            # ends in the dead-letter queue, and the others get through.
            _log.exception("attempt failed", submissions=len(deliveries))
            if len(deliveries) == 1:
                await asyncio.sleep(_DEFECT_PAUSE)
                await self.consumer.requeue(deliveries)
                return Unfinished()
        left = Unfinished()
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
