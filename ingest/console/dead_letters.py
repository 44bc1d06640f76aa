"""The dead letters as the console knows them: read when a page shows them, and kept, so that no page waits.

`ingest.dead` can only be read completely. On RabbitMQ, many messages take seconds, and are held meanwhile. So a page
shows what was read last, with its time.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from ingest.console.failures import noted
from ingest.console.snapshot import MAX_BYTES, MAX_ROWS, ReasonGroup, Snapshot
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.overview import DeadReason, QueueState
from ingest.operations.dead_letters import Progress, Selection, select
from ingest.operations.dead_reasons import FEW
from ingest.operations.find import Matches
from ingest.operations.trim import OpenDeadLetters
from ingest.waiting import TimeSlices, cancel_once

MIN_AGE: Final = 30.0
"""Seconds after which the queue is read again when a page shows it."""
_SEARCH_PATIENCE: Final = 20.0
"""Seconds that a search waits for the first reading. Later searches wait PATIENCE, because older results exist."""
PATIENCE: Final = 0.1
"""Seconds that a page waits for a reading."""
_AFTER_CHANGE: Final = 2.0
"""Seconds that a page waits for the first reading after an action."""


class DeadLetters:
    """Reads `ingest.dead` when a page shows it. Between two readings are at least `MIN_AGE` seconds.

    Args:
        open_dead_letters: opens the queue, as `BrokerBackend.open_dead_letters`.
        clock: Unix time in seconds.
        monotonic: monotonic time in seconds; it measures the age of what was read.
        max_rows: see MAX_ROWS.
        max_bytes: see MAX_BYTES.
    """

    def __init__(
        self,
        open_dead_letters: OpenDeadLetters,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._open = open_dead_letters
        self._clock = clock
        self._monotonic = monotonic
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self.queue_lock = asyncio.Lock()
        """Held while this process uses the queue."""
        self._task: asyncio.Task[None] | None = None
        self._has_queue = False
        self._tried_at = float("-inf")
        self.snapshot: Snapshot | None = None
        self.is_outdated = False
        """Whether an action has changed the queue since it was read."""
        self.progress = Progress()
        self.total = 0
        """Number of messages in the queue when the reading began."""
        self.failure = ""
        """Why the last reading failed; empty if it succeeded."""

    @property
    def is_reading(self) -> bool:
        """Whether the queue is being read."""
        return self._task is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a reading waits, because another user of the queue in this process has it."""
        return self.is_reading and self.queue_lock.locked() and not self._has_queue

    async def look(self, patience: float = PATIENCE) -> Snapshot | None:
        """Return what was read last; None if nothing was yet.

        If that is old, begin to read, and wait for the result for up to `patience` seconds.
        """
        if self._task is None and self._monotonic() - self._tried_at >= MIN_AGE:
            self._task = asyncio.create_task(self._read())
            self._task.add_done_callback(self._ended)  # also if it is cancelled before it begins
        if self.is_outdated and not self.queue_lock.locked():
            patience = max(patience, _AFTER_CHANGE)
        if self._task is not None:
            await asyncio.wait([self._task], timeout=patience)
        return self.snapshot

    async def read(self, queue: QueueState | None) -> tuple[list[DeadReason] | None, str]:
        """Return what was read last, by reason, as `operations.dead_reasons.DeadReasons`. Few are read again."""
        if queue is None:
            return None, "unknown"
        if queue.ready == 0 and not queue.unacked:
            return [], ""
        is_new = self.snapshot is None or self.snapshot.count != queue.ready
        if is_new and queue.ready <= FEW and not queue.consumers:
            await self.look()
        snapshot = self.snapshot
        if snapshot is None:
            return None, self.failure or f"{queue.ready:,}: open the dead letters to read them"
        now = self._clock()
        reasons = [
            DeadReason(
                reason=reason,
                count=sum(group.count for group in groups),
                oldest=max((now - group.oldest for group in groups if group.oldest is not None), default=None),
            )
            for reason, groups in _by_reason(snapshot.groups.values()).items()
        ]
        note = self.failure or (
            ""
            if snapshot.count == queue.ready
            else "they are being read"
            if self.is_reading
            else f"{queue.ready:,} now"
        )
        return sorted(reasons, key=lambda reason: -reason.count), note

    async def search(self, names: AbstractSet[str], customer: str | None) -> Matches:
        """Look in what was read last, as `operations.find.Search`. Raises BrokerUnavailable if nothing was read."""
        snapshot = await self.look(_SEARCH_PATIENCE if self.snapshot is None else PATIENCE)
        if snapshot is None:
            raise BrokerUnavailable(self.failure or "they are being read now, load the page again")
        return snapshot.matches(names, customer)

    def stop_reading(self) -> None:
        """Abort the reading, so that an action can use the queue. Keep the last snapshot."""
        if self._task is not None:
            cancel_once(self._task)

    def changed(self) -> None:
        """Mark the snapshot as outdated, so that the next page reads the queue."""
        self._tried_at, self.is_outdated = float("-inf"), True

    async def close(self) -> None:
        """Stop reading, and delete what was read."""
        task = self._task
        self.stop_reading()
        if task is not None:
            await asyncio.wait([task])
        if self.snapshot is not None:
            self.snapshot.close()

    async def _fill(self, snapshot: Snapshot) -> None:
        async with self._open(change=False) as access:
            snapshot.at = self._clock()
            self.total = await access.queue.count()
            slices = TimeSlices()
            async for letters in select(access.queue, Selection(), access.trusted_users):
                for dead in letters:
                    snapshot.add(dead, access.trusted_users)
                    await slices.between()  # other pages are answered meanwhile
                self.progress.add(len(letters))

    async def _read(self) -> None:
        snapshot: Snapshot | None = None
        self.progress, self.total = Progress(), 0
        try:
            snapshot = Snapshot(self._clock(), self._max_rows, self._max_bytes)
            async with self.queue_lock:
                self._has_queue = True
                await self._fill(snapshot)
        except Exception as error:  # noqa: BLE001 - an odd answer of a server must not end the console
            self.failure = noted("dead_letters_not_read", error)
        else:
            self.failure, self.is_outdated = "", False
            snapshot, self.snapshot = self.snapshot, snapshot
        finally:
            if snapshot is not None:  # the previous one, or what was read in vain
                snapshot.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task, self._has_queue = None, False
        self._tried_at = float("-inf") if task.cancelled() else self._monotonic()


def _by_reason(groups: Iterable[ReasonGroup]) -> dict[str, list[ReasonGroup]]:
    by_reason: dict[str, list[ReasonGroup]] = {}
    for group in groups:
        by_reason.setdefault(group.reason, []).append(group)
    return by_reason
