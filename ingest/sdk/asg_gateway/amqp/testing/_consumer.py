"""A consumer without a broker: it handles events exactly as `Consumer` does, with the same code."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from asg_gateway._backoff import Backoff
from asg_gateway.amqp._consuming.processing import Processor
from asg_gateway.amqp._consuming.rules import ConsumerStats, Rules
from asg_gateway.amqp._consuming.threads import Threads
from asg_gateway.amqp._dedupe.strategy import Dedupe, Handler, NoDedupe
from asg_gateway.amqp._events import Event
from asg_gateway.amqp.testing._samples import encode


@dataclass(frozen=True)
class ParkedEvent:
    """An event that a consumer would have parked.

    Attributes:
        body: the message.
        error: what the handler raised the last time, or why it is no event.
        attempts: how often the handler was called.
    """

    body: bytes
    error: BaseException
    attempts: int


@dataclass
class Outcome:
    """What happened to the events of one delivery.

    Attributes:
        handled: events whose handler succeeded.
        duplicates: copies of events that were handled before.
        retried: further attempts after an exception.
        parked: events that were given up.
    """

    handled: int = 0
    duplicates: int = 0
    retried: int = 0
    parked: list[ParkedEvent] = field(default_factory=list)


class FakeConsumer:
    """Handles events as `Consumer` does, deduplication, retries and parking included, but without pauses.

    Args:
        handler: as that of `Consumer`.
        dedupe: the same.
        queue: the queue whose events they are.
        max_attempts: as that of `Consumer`; it must be a number, because a retry without end would not return.
        concurrency: as that of `Consumer`, by default 1, so that the order is kept.

    Raises:
        TypeError: the handler does not suit `dedupe`.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        dedupe: Dedupe | None,
        queue: str = "consensus.tasks",
        max_attempts: int = 10,
        concurrency: int = 1,
    ) -> None:
        self._dedupe = dedupe or NoDedupe()
        self._dedupe.check(handler)
        self._rules = Rules(queue, handler, self._dedupe, max_attempts, lambda: Backoff(0, 0), _no_pause)
        self._concurrency = concurrency

    async def deliver(self, *events: Event | bytes) -> Outcome:
        """Deliver events, or the bodies of messages, and return what happened to them. Raises what `Consumer.run` does.

        An event that is given twice is delivered twice, as a broker may do.
        """
        stats, outcome = ConsumerStats(), Outcome()
        threads = Threads(self._concurrency, self._dedupe.release_thread)
        processor = Processor(self._rules, self._concurrency, threads.run, stats)
        try:
            await self._dedupe.open(self._rules.source, threads.run)
            for event in events:
                body = event if isinstance(event, bytes) else encode(event)
                await processor.accept(_FakeDelivery(body, outcome.parked))
            await processor.idle()
        finally:
            processor.abort()
            threads.close()
        outcome.handled, outcome.duplicates, outcome.retried = stats.handled, stats.duplicates, stats.retried
        return outcome


def deliver(handler: Handler, *events: Event | bytes, dedupe: Dedupe | None, **options: Any) -> Outcome:
    """Do as `FakeConsumer(handler, dedupe=dedupe, **options).deliver(*events)`, in a test without an event loop."""
    return asyncio.run(FakeConsumer(handler, dedupe=dedupe, **options).deliver(*events))


class _FakeDelivery:
    earlier_deliveries = 0
    wait = 0.0

    def __init__(self, body: bytes, parked: list[ParkedEvent]) -> None:
        self.body = body
        self._parked = parked
        self.alive = True

    async def ack(self) -> bool:
        alive, self.alive = self.alive, False
        return alive

    async def park(self, error: BaseException, attempts: int) -> None:
        self._parked.append(ParkedEvent(self.body, error, attempts))


async def _no_pause(seconds: float) -> None:
    await asyncio.sleep(0.001)
