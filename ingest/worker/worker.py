"""Consumes the ingest queues and keeps micro-batches of deliveries in progress until it is stopped."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from ingest.admission import Admission
from ingest.domain.errors import ParserFailed
from ingest.domain.messages import Delivery
from ingest.domain.metrics import NO_METER, Meter
from ingest.domain.ports import Broker, Consumer, Store
from ingest.domain.topology import INGEST_BATCHES
from ingest.parsing.parser import SubmissionParser
from ingest.waiting import Backoff, wait_for_event, waiting_for
from ingest.worker.apart import WaitingApart
from ingest.worker.breaker import PAUSES, BreakerState, CircuitBreaker, Stopping
from ingest.worker.classify import DeliveryClassifier, waits_for_parser
from ingest.worker.outage import return_deliveries_in_long_outages
from ingest.worker.processor import DeliveryProcessor, Unfinished
from ingest.worker.refunds import INTERVAL, refund_doubts_regularly

_CONTENDED_PAUSES: Final = (0.05, 1.0)
"""First and longest pause before another attempt at contended submissions, in seconds."""
_PATIENCE: Final = 0.5
"""Seconds after which submissions that are still contended or undecided wait apart: they no longer take part of the
prefetch."""
_CONTENDED_APART_PAUSES: Final = (1.0, 5.0)
"""First and longest pause before another attempt at contended submissions that wait apart, in seconds."""
_REFUSED_PAUSES: Final = (0.5, 30.0)
"""First and longest pause before another attempt at submissions whose events or dead letters the broker refuses, in
seconds."""
_DEFECT_PAUSE: Final = 0.2
"""Seconds before a delivery whose attempt failed for no other reason than itself is requeued."""
OUTAGE_HOLD: Final = 600.0
"""Seconds for which deliveries are held through an outage."""
_MAX_CONCURRENCY: Final = 3
"""Micro-batches of one queue in progress: one waits for confirms while the next is prepared, and one more fills up."""
_PUBLISHING_CONNECTIONS: Final = 2
"""RabbitMQ routes the messages of one connection on one core, and a worker publishes more than one core routes."""

_log = structlog.get_logger(__name__)


class Worker:
    """Runs one consumer per ingest queue.

    Args:
        store: ledger, quotas and customers.
        broker: provides the consumers and the publisher.
        admission: admits direct submissions; it uses the same store.
        trusted_users: the service's own AMQP users.
        prefetch: for each queue to consume, the most deliveries that may be unacknowledged.
        meter: records metrics.
        outage_hold: seconds for which deliveries are held through an outage; well below RabbitMQ's `consumer_timeout`.
        refund_interval: seconds between two searches for charges of submissions that never became tasks.
        circuit_breaker: for tests; by default one with the pauses `breaker.PAUSES`.
        monotonic: monotonic time in seconds; it limits the age of cached customers.
        parser: for tests; by default one of its own.
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
        refund_interval: float = INTERVAL,
        circuit_breaker: CircuitBreaker | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        parser: SubmissionParser | None = None,
    ) -> None:
        self._store = store
        self._broker = broker
        self._admission = admission
        self._prefetch = prefetch
        self._meter = meter
        self._outage_hold = outage_hold
        self._refund_interval = refund_interval
        self._breaker = circuit_breaker or CircuitBreaker()
        self._parser = parser or SubmissionParser()
        self._classifier = DeliveryClassifier(store, trusted_users, self._parser, monotonic)
        self._stopping = asyncio.Event()

    @property
    def breaker(self) -> BreakerState:
        """Whether the circuit is open because of an outage, and since when."""
        return self._breaker.state

    @property
    def problems(self) -> list[str]:
        """What an operator must correct, as sentences with a name before them."""
        return [
            f"untrusted: user {user} publishes submissions as the service does, but INGEST_TRUSTED_USERS of this "
            "worker does not name it; they wait"
            for user in self._classifier.untrusted_users
        ]

    async def run(self) -> None:
        """Consume until `stop`; then finish and ack what was delivered, and close. Cancelling closes at once."""
        publisher = await self._broker.publisher(_PUBLISHING_CONNECTIONS)
        processor = DeliveryProcessor(self._store, publisher, self._admission, self._classifier, self._meter)
        loops: list[QueueConsumerLoop] = []
        try:
            for queue, prefetch in self._prefetch.items():
                consumer = await self._broker.consumer(queue, prefetch)
                # A batch has up to a thousand tasks, so it is a micro-batch by itself.
                max_batch = 1 if queue == INGEST_BATCHES else max(1, prefetch // (_MAX_CONCURRENCY + 1))
                loops.append(QueueConsumerLoop(consumer, processor, self._breaker, self._stopping, max_batch))
            _log.info("worker_started", prefetch=dict(self._prefetch), **waiting_for(self._broker.connections()))
            async with asyncio.TaskGroup() as group:
                consumers = [loop.consumer for loop in loops]
                ready_checks = [self._store.ready, publisher.ready]
                group.create_task(
                    return_deliveries_in_long_outages(self._breaker, consumers, ready_checks, self._outage_hold)
                )
                group.create_task(refund_doubts_regularly(self._admission, self._stopping, self._refund_interval))
                for loop in loops:
                    group.create_task(loop.run())
            await self._admission.close()
            _log.info("worker_stopped")
        finally:
            for loop in loops:
                await loop.consumer.close()
            await publisher.close()
            await self._parser.close()

    def stop(self) -> None:
        """Take no more deliveries and finish those in progress. Call it in the event loop's thread."""
        self._stopping.set()
        self._breaker.stop()


class QueueConsumerLoop:
    """Receives the deliveries of one queue, attempts them in micro-batches, and retries the unfinished ones.

    While one micro-batch is in progress, the next one waits until it has `max_batch` deliveries: large ones cost less
    per delivery, also for RabbitMQ. There is no timer, so under light traffic small ones start at once.

    A delivery that waits for the process that parses large bodies is a micro-batch by itself, and does not count as in
    progress, so that it delays no other delivery.
    """

    def __init__(
        self,
        consumer: Consumer,
        processor: DeliveryProcessor,
        breaker: CircuitBreaker,
        stopping: asyncio.Event,
        max_batch: int,
    ) -> None:
        self.consumer = consumer
        self._processor = processor
        self._breaker = breaker
        self._stopping = stopping
        self._max_batch = max_batch
        self._waiting: list[Delivery] = []
        self._in_progress = 0
        self._group = asyncio.TaskGroup()
        self._apart = WaitingApart(consumer, processor, self._attempt_under_breaker, stopping, self._group)

    async def run(self) -> None:
        """Consume until the worker stops, then finish what was delivered."""
        async with self._group:
            self._group.create_task(self._stop_consumer())
            while deliveries := await self.consumer.receive():
                # If many are waiting, some may belong to a lost connection. The broker delivers those again.
                if len(self._waiting) > self._max_batch * _MAX_CONCURRENCY:
                    self._waiting = list(filter(self.consumer.alive, self._waiting))
                for delivery in deliveries:
                    if waits_for_parser(delivery):
                        self._group.create_task(self._process_alone(delivery))
                    else:
                        self._waiting.append(delivery)
                self._start()

    def _start(self) -> None:
        """Start as many micro-batches as the limits allow."""
        while self._waiting and self._in_progress < (_MAX_CONCURRENCY if len(self._waiting) >= self._max_batch else 1):
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            self._in_progress += 1
            self._group.create_task(self._process(batch))

    async def _stop_consumer(self) -> None:
        await self._stopping.wait()
        await self.consumer.stop()

    async def _process(self, deliveries: Sequence[Delivery]) -> None:
        """Attempt the deliveries until all are finished or lost, or the worker stops."""
        unfinished = await self._attempt_under_breaker(deliveries)
        # Retries do not count as in progress: contended deliveries are few, and in an outage the breaker
        # limits the attempts.
        self._in_progress -= 1
        self._start()
        if unfinished:
            await self._retry(unfinished)

    async def _process_alone(self, delivery: Delivery) -> None:
        if unfinished := await self._attempt_under_breaker([delivery]):
            await self._retry(unfinished)

    async def _retry(self, unfinished: Unfinished) -> None:
        contended, unavailable = Backoff(*_CONTENDED_PAUSES), Backoff(*PAUSES)
        loop = asyncio.get_running_loop()
        impatient_at = loop.time() + _PATIENCE
        while unfinished:
            if unfinished.refused or unfinished.rejected:
                refused = Unfinished(refused=unfinished.refused, rejected=unfinished.rejected)
                self._apart.add(refused, _REFUSED_PAUSES)
                unfinished.refused, unfinished.rejected = [], []
            if unfinished.untrusted:
                self._apart.add(Unfinished(untrusted=unfinished.untrusted), _CONTENDED_APART_PAUSES)
                unfinished.untrusted = []
            if (unfinished.contended or unfinished.undecided) and loop.time() >= impatient_at:
                waiting = Unfinished(contended=unfinished.contended, undecided=unfinished.undecided)
                self._apart.add(waiting, _CONTENDED_APART_PAUSES)
                unfinished.contended, unfinished.undecided = [], []
            if not unfinished:
                return
            pause = (unavailable if unfinished.unavailable or unfinished.undecided else contended).next()
            # With an open circuit the breaker decides when the next attempt is made.
            if not self._breaker.state.is_open and await wait_for_event(self._stopping, pause):
                return  # the broker delivers them again
            unfinished = await self._attempt_under_breaker(unfinished.deliveries)

    async def _attempt_under_breaker(self, deliveries: Sequence[Delivery]) -> Unfinished:
        """Wait for the breaker, then make one attempt at the deliveries that can still be acknowledged."""
        try:
            async with self._breaker.attempt() as attempt:
                alive = [delivery for delivery in deliveries if self.consumer.alive(delivery)]
                if not alive:
                    return Unfinished()
                unfinished = await self._attempt(alive)
                finished_some = len(unfinished.deliveries) < len(alive)
                attempt.made_progress = finished_some or not unfinished.unavailable
                return unfinished
        except Stopping:
            return Unfinished()  # the broker delivers them again

    async def _attempt(self, deliveries: Sequence[Delivery]) -> Unfinished:
        """Make one attempt. After a defect, attempt each delivery alone and requeue the one that triggers it.

        The same if the process that parses large bodies failed: the body may be the reason.

        So the other deliveries are finished, and the broker dead-letters the requeued one at the delivery limit.
        """
        try:
            return await self._processor.attempt(self.consumer, deliveries)
        except ParserFailed as error:
            _log.error("parsing_failed", error=str(error), ids=[delivery.message_id for delivery in deliveries])
        except Exception:  # noqa: BLE001 - a defect must not stop the worker
            _log.exception("attempt_crashed", submissions=len(deliveries))
        if len(deliveries) == 1:
            await asyncio.sleep(_DEFECT_PAUSE)
            await self.consumer.requeue(deliveries)
            return Unfinished()
        unfinished = Unfinished()
        for delivery in deliveries:
            unfinished.add(await self._attempt([delivery]))
        return unfinished
