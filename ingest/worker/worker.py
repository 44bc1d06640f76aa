"""Consumes the ingest queues until it is stopped."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from ingest.admission import Admission
from ingest.domain.metrics import NO_METER, Meter
from ingest.domain.ports import Broker, Consumer, Store
from ingest.domain.topology import DEFAULT, INGEST_BATCHES, INGEST_TASKS, Layout
from ingest.parsing.parser import SubmissionParser
from ingest.waiting import waiting_for
from ingest.worker import surplus_queues
from ingest.worker.breaker import BreakerState, CircuitBreaker
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.delivery_loop import MAX_CONCURRENCY, DeliveryLoop
from ingest.worker.outage import return_deliveries_in_long_outages
from ingest.worker.own_queues import OwnQueues
from ingest.worker.processor import DeliveryProcessor
from ingest.worker.refunds import INTERVAL, refund_doubts_regularly
from ingest.worker.surplus_queues import SurplusQueues

OUTAGE_HOLD: Final = 600.0
"""Seconds for which deliveries are held through an outage."""
_PUBLISHING_CONNECTIONS: Final = 2
"""RabbitMQ routes the messages of one connection on one core, and a worker publishes more than one core routes."""

_log = structlog.get_logger(__name__)


class Worker:
    """Runs one consumer per ingest queue, and one loop for the deliveries of all.

    Args:
        store: ledger, quotas and customers.
        broker: provides the consumers and the publisher.
        admission: admits direct submissions; it uses the same store.
        trusted_users: the service's own AMQP users.
        prefetch: for each queue to consume, the most deliveries that may be unacknowledged. The queues of single
            producers have that of `ingest.tasks` or `ingest.batches`.
        layout: how many queues of the shim `prefetch` has.
        meter: records metrics.
        outage_hold: seconds for which deliveries are held through an outage; well below RabbitMQ's `consumer_timeout`.
        refund_interval: seconds between two searches for charges of submissions that never became tasks.
        circuit_breaker: for tests; by default one with the pauses `breaker.PAUSES`.
        monotonic: monotonic time in seconds; it limits the age of cached customers.
        parser: for tests; by default one of its own.
        surplus_interval: seconds between two looks for queues that `layout` does not have.
    """

    def __init__(
        self,
        *,
        store: Store,
        broker: Broker,
        admission: Admission,
        trusted_users: frozenset[str],
        prefetch: Mapping[str, int],
        layout: Layout = DEFAULT,
        meter: Meter = NO_METER,
        outage_hold: float = OUTAGE_HOLD,
        refund_interval: float = INTERVAL,
        circuit_breaker: CircuitBreaker | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        parser: SubmissionParser | None = None,
        surplus_interval: float = surplus_queues.INTERVAL,
    ) -> None:
        self._store = store
        self._broker = broker
        self._admission = admission
        self._prefetch = prefetch
        self._layout = layout
        self._meter = meter
        self._outage_hold = outage_hold
        self._refund_interval = refund_interval
        self._surplus_interval = surplus_interval
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
        consumers: dict[str, Consumer] = {}
        try:
            for queue, prefetch in self._prefetch.items():
                consumers[queue] = await self._broker.consumer(queue, prefetch)
            largest = max(self._prefetch.values())
            max_batch = max(1, largest // (MAX_CONCURRENCY + 1))
            loop = DeliveryLoop(consumers, processor, self._breaker, self._stopping, max_batch)
            _log.info("worker_started", prefetch=dict(self._prefetch), **waiting_for(self._broker.connections()))
            async with asyncio.TaskGroup() as group:
                ready_checks = [self._store.ready, publisher.ready]
                group.create_task(
                    return_deliveries_in_long_outages(self._breaker, consumers, ready_checks, self._outage_hold)
                )
                group.create_task(refund_doubts_regularly(self._admission, self._stopping, self._refund_interval))
                group.create_task(loop.run())
                own_prefetch = self._prefetch.get(INGEST_TASKS, largest), self._prefetch.get(INGEST_BATCHES, largest)
                own_queues = OwnQueues(self._store, self._broker, loop, own_prefetch, self._stopping)
                group.create_task(own_queues.run())
                surplus = SurplusQueues(
                    self._broker, loop, self._layout, largest, self._stopping, self._surplus_interval
                )
                group.create_task(surplus.run())
            await self._admission.close()
            _log.info("worker_stopped")
        finally:
            for consumer in list(consumers.values()):
                await consumer.close()
            await publisher.close()
            await self._parser.close()

    def stop(self) -> None:
        """Take no more deliveries and finish those in progress. Call it in the event loop's thread."""
        self._stopping.set()
        self._breaker.stop()
