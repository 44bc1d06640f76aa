"""How a consumer handles events, what it counts, and the errors that park an event."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from asg_gateway._backoff import Backoff
from asg_gateway.amqp._dedupe.strategy import Dedupe, Handler

PARKED: Final = ".parked"
"""The end of the name of a parking queue."""


class Park(Exception):
    """A handler raises it to park its event at once, because no further attempt helps."""


class PoisonError(Exception):
    """The event was delivered many times, at last alone, and never finished: it probably crashes its consumers."""


@dataclass
class ConsumerStats:
    """What a consumer has done since it was created.

    Attributes:
        handled: calls of the handler that succeeded.
        duplicates: copies of events that were handled before.
        retried: further attempts that were scheduled.
        parked: events that went to the parking queue.
    """

    handled: int = 0
    duplicates: int = 0
    retried: int = 0
    parked: int = 0


@dataclass(frozen=True)
class Limits:
    """How much a consumer does at once.

    Attributes:
        prefetch: the most events that are held.
        concurrency: the most attempts at once.
        parked_pause: seconds after the parking of an event before it is handled; 0 if the queue is no parking queue.
        drain_timeout: seconds that running handlers have to end.
    """

    prefetch: int
    concurrency: int
    parked_pause: float
    drain_timeout: float


@dataclass(frozen=True)
class Rules:
    """How events are handled.

    Attributes:
        queue: the queue that is consumed.
        handler: called for each event.
        dedupe: the strategy.
        max_attempts: failures after which an event is parked; None: it is never parked for that.
        pauses: returns the pauses of one event, in seconds.
        sleep: waits so many seconds.
    """

    queue: str
    handler: Handler
    dedupe: Dedupe
    max_attempts: int | None
    pauses: Callable[[], Backoff]
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    @property
    def source(self) -> str:
        """The queue whose events these are, also if they come from its parking queue."""
        return self.queue.removesuffix(PARKED)
