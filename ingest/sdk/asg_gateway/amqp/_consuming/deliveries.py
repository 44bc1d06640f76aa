"""Deliveries, and the order in which they may be handled."""

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from asg_gateway._backoff import Backoff
from asg_gateway.amqp._events import Event

SUSPECT: Final = 2
"""Earlier deliveries that make a delivery a suspect: it may crash its consumers. One can happen to any delivery."""
_COUNTS: Final = ("x-delivery-count", "x-acquired-count")
"""The headers in which RabbitMQ counts earlier deliveries, the second from version 4.3 on."""


class Delivery(Protocol):
    """A message that is held until it is acknowledged.

    Attributes:
        body: the bytes of the message.
        earlier_deliveries: how often the broker has delivered it before, by the broker's own count.
        wait: seconds until it should be handled; 0 for at once.
    """

    body: bytes
    earlier_deliveries: int
    wait: float

    @property
    def alive(self) -> bool:
        """Whether it can still be acknowledged; otherwise the broker delivers it again."""

    async def ack(self) -> bool:
        """Acknowledge it; return whether it was alive."""

    async def park(self, error: BaseException, attempts: int) -> None:
        """Publish a copy to the parking queue. Raises ASGGatewayError."""


def count_headers(version: str) -> tuple[str, ...]:
    """Return the names of the headers in which a version of RabbitMQ itself counts deliveries.

    Others are a publisher's, which the broker passes on.
    """
    major, minor, *_ = [int(part) if part.isdigit() else 0 for part in [*version.split("."), "", ""]]
    return _COUNTS if (major, minor) >= (4, 3) else _COUNTS[:1]


def earlier_deliveries(headers: Mapping[str, Any], version: str) -> int:
    """Return how often a message was delivered before, with the headers of a delivery and RabbitMQ's version."""
    counts = [headers.get(name) for name in count_headers(version)]
    return max([count for count in counts if isinstance(count, int)], default=0)


def remaining_pause(parked_at: object, pause: float, now: float) -> float:
    """Return how many seconds of a pause are left.

    Args:
        parked_at: when the pause began, RFC 3339. If it is anything else, nothing is left.
        pause: its length in seconds, which the result never exceeds: clocks may differ.
        now: the Unix time in seconds.
    """
    try:
        begun = datetime.fromisoformat(str(parked_at)).timestamp()
    except ValueError:
        return 0.0
    return min(max(begun + pause - now, 0.0), pause)


@dataclass(eq=False)
class Job:
    """An event to handle, with all copies of it that are held.

    Attributes:
        event: None if the message is not an event.
        key: the event's id, or what else identifies the job.
        deliveries: the copies.
        pauses: the pauses before further attempts.
        problem: why it must be parked, or None.
        attempts: how often the handler has raised.
        survived: whether an attempt has ended without a crash of the process.
        waits: whether it waits for a further attempt.
    """

    event: Event | None
    key: str
    deliveries: list[Delivery]
    pauses: Backoff
    problem: BaseException | None = None
    attempts: int = 0
    survived: bool = False
    waits: bool = False

    @property
    def earlier_deliveries(self) -> int:
        return max((delivery.earlier_deliveries for delivery in self.deliveries), default=0)

    @property
    def is_suspect(self) -> bool:
        """Whether it may crash the process."""
        return not self.survived and self.earlier_deliveries >= SUSPECT

    def drop_dead(self) -> bool:
        """Forget the copies that cannot be acknowledged any more; return whether others remain."""
        alive = [delivery for delivery in self.deliveries if delivery.alive]
        self.deliveries = alive or self.deliveries[:1]
        return bool(alive)


class Turns:
    """Decides which job may begin next, so that one that crashes its consumers does not affect its neighbours.

    If a process crashes, the broker delivers everything it held again, with a higher count: the harmless as well as
    the poison. So while a suspect waits, jobs begin in rounds: first all others that have arrived, then one suspect at
    a time, alone, those with the fewest deliveries first, in random order among equals. What arrives during a round
    waits for its end. So only the poison itself reaches the limit.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._waiting: deque[Job] = deque()
        self._harmless: deque[Job] = deque()
        self._suspects: list[Job] = []
        """Those of the current round, in the reverse order of their turns."""
        self._running: set[Job] = set()
        self._alone: Job | None = None
        """The suspect that runs now."""

    def add(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self._waiting.append(job)

    def next(self) -> Job | None:
        """Begin the next job and return it; None if none may begin now."""
        if self._alone is not None or len(self._running) >= self._concurrency:
            return None
        if not (self._harmless or self._suspects) and any(job.is_suspect for job in self._waiting):
            self._begin_round()
        if self._harmless:
            job = self._harmless.popleft()
        elif self._suspects:
            if self._running:
                return None
            self._alone = job = self._suspects.pop()
        elif self._waiting:
            job = self._waiting.popleft()
        else:
            return None
        self._running.add(job)
        return job

    def end(self, job: Job) -> None:
        """End a job that has begun."""
        self._running.discard(job)
        if self._alone is job:
            self._alone = None

    def _begin_round(self) -> None:
        jobs = list(self._waiting)
        self._waiting.clear()
        self._harmless.extend(job for job in jobs if not job.is_suspect)
        self._suspects = [job for job in jobs if job.is_suspect]
        random.shuffle(self._suspects)
        self._suspects.sort(key=lambda job: job.earlier_deliveries, reverse=True)
