"""The dead letters of each reason, for the state of the service."""

import time
from collections.abc import Callable
from typing import Final, Protocol

from ingest.backends import BrokerBackend
from ingest.domain.errors import IngestError
from ingest.domain.overview import DeadReason, QueueState
from ingest.operations.dead_letters import Group, Selection, add_to, select

FEW: Final = 2000
"""The most dead letters that are read unasked. On RabbitMQ reading holds them for a moment."""
INTERVAL: Final = 30.0
"""Seconds between two readings."""


class DeadReasons(Protocol):
    """Knows the dead letters of each reason."""

    async def read(self, queue: QueueState | None) -> tuple[list[DeadReason] | None, str]:
        """Return the dead letters by reason, None if they are unknown, and a note to show with them.

        `queue` is the state of ingest.dead, None if it is unknown.
        """
        ...


class QueuedDeadReasons:
    """Reads the dead letters if there are new ones and few.

    Args:
        broker: has the queue.
        clock: Unix time in seconds.
        monotonic: monotonic time in seconds; it measures how long ago the dead letters were read.
    """

    def __init__(
        self,
        broker: BrokerBackend,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._monotonic = monotonic
        self._groups: list[Group] | None = None
        self._problem = ""
        """Why they could not be read the last time."""
        self._read_at = float("-inf")
        self._depth = -1

    async def read(self, queue: QueueState | None) -> tuple[list[DeadReason] | None, str]:
        """Return them, as `DeadReasons`."""
        note = await self._update(queue)
        now = self._clock()
        return None if self._groups is None else [_reason(group, now) for group in self._groups], note

    async def _update(self, queue: QueueState | None) -> str:
        if queue is None:
            self._groups, self._depth = None, -1
            return "unknown"
        if queue.ready == 0 and not queue.unacked:
            self._groups, self._depth = [], 0
            return ""
        if queue.ready > FEW:
            self._groups, self._depth = None, -1
            return f"{queue.ready:,}: too many to read here, use `ingest dlq list`"
        if queue.consumers:
            return "another consumer is reading them"
        is_new = queue.ready != self._depth
        if is_new and self._monotonic() - self._read_at >= INTERVAL:
            self._read_at = self._monotonic()
            try:
                self._groups = await self._read_groups()
            except IngestError as error:
                self._groups, self._depth, self._problem = None, -1, str(error)
                return self._problem
            self._depth, self._problem = queue.ready, ""
        if self._groups is None:
            return self._problem or "not read yet"
        return "" if queue.ready == self._depth else f"{queue.ready} now"

    async def _read_groups(self) -> list[Group]:
        groups: dict[str, Group] = {}
        async with self._broker.open_dead_letters(change=False) as access:
            async for dead_letters in select(access.queue, Selection(), access.trusted_users):
                add_to(groups, dead_letters)
        return sorted(groups.values(), key=lambda group: -group.count)


def _reason(group: Group, now: float) -> DeadReason:
    oldest = None if group.oldest is None else max(0.0, now - group.oldest)
    return DeadReason(reason=group.reason, count=group.count, oldest=oldest)
