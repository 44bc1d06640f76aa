"""Long outages: a worker returns its deliveries to their queues, and consumes again once everything is ready."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from ingest.domain.errors import Unavailable
from ingest.domain.ports import Consumer
from ingest.waiting import Backoff
from ingest.worker.breaker import PAUSES, CircuitBreaker

_log = structlog.get_logger(__name__)

ReadyCheck = Callable[[], Awaitable[None]]
"""Raises Unavailable unless a dependency is available."""


async def return_deliveries_in_long_outages(
    breaker: CircuitBreaker, consumers: Mapping[str, Consumer], ready_checks: Sequence[ReadyCheck], hold: float
) -> None:
    """Return all deliveries if the circuit stays open for `hold` seconds; consume again when every check passes.

    RabbitMQ closes the channel of a consumer that holds a delivery too long (`consumer_timeout`, 30 minutes by
    default). In a long outage this happens again and again, and each time counts towards the delivery limit. Deliveries
    that are returned count only once, however long the outage lasts.
    """
    while await breaker.open_for(hold):
        _log.warning("outage_deliveries_returned", seconds=hold)
        for consumer in list(consumers.values()):
            await consumer.pause()
        backoff = Backoff(*PAUSES)
        while not await _all_ready(ready_checks) and not await breaker.closed_within(backoff.next()):
            pass
        for consumer in list(consumers.values()):
            await consumer.resume()
        breaker.close()


async def _all_ready(ready_checks: Sequence[ReadyCheck]) -> bool:
    try:
        for check in ready_checks:
            await check()
    except Unavailable:
        return False
    return True
