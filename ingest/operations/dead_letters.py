"""Work on `ingest.dead`: choose, group, submit again, remove. The same for every broker."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final

import msgspec

from ingest.domain import dead_letters
from ingest.domain.dead_letters import DeadLetter
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.ports import DeadLetterQueue, Publisher

_CHUNK: Final = 200
_TICK: Final = 0.1
"""Seconds of a rate that are sent at once."""

Progress = Callable[[int], None]
"""Told how many messages have been looked through since it was told last."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant; what is left out does not limit. Ages are seconds."""

    ids: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    customer: str | None = None
    older_than: float | None = None
    newer_than: float | None = None

    def takes(self, dead: DeadLetter, now: float) -> bool:
        """Whether it is meant; of unknown age it is not where an age is asked for."""
        if (self.ids and dead.id not in self.ids) or (self.reasons and dead.reason not in self.reasons):
            return False
        if self.customer is not None and dead.cust_id != self.customer:
            return False
        if self.older_than is None and self.newer_than is None:
            return True
        if dead.died_at is None:
            return False
        age = now - dead.died_at
        return (self.older_than is None or age >= self.older_than) and (
            self.newer_than is None or age <= self.newer_than
        )


class Group(msgspec.Struct):
    """Dead letters of one reason. Times are Unix seconds; `undated` have none; `example` is the latest."""

    reason: str
    example: str
    error: str
    count: int = 0
    oldest: float | None = None
    newest: float | None = None
    undated: int = 0
    customers: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, dead: DeadLetter) -> None:
        self.count += 1
        self.example, self.error = dead.id, dead.error
        self.customers[dead.cust_id] += 1
        if dead.died_at is None:
            self.undated += 1
            return
        self.oldest = min(dead.died_at, self.oldest or dead.died_at)
        self.newest = max(dead.died_at, self.newest or dead.died_at)


class Report(msgspec.Struct):
    """What became of the dead letters that were meant.

    `done` by reason: redriven or removed, or what would be in a dry run. `kept` by sentence: must not be submitted
    again. `failed` by outcome: not confirmed, still there; then the rest was not tried.
    """

    looked: int = 0
    done: Counter[str] = msgspec.field(default_factory=Counter)
    kept: Counter[str] = msgspec.field(default_factory=Counter)
    failed: Counter[str] = msgspec.field(default_factory=Counter)


async def select(
    queue: DeadLetterQueue, selection: Selection, trusted: frozenset[str], progress: Progress
) -> AsyncIterator[list[DeadLetter]]:
    """Those that are meant, the oldest first, in lists."""
    now = time.time()
    async for deliveries in queue.browse():
        read = [dead_letters.read(delivery, trusted) for delivery in deliveries]
        progress(len(deliveries))
        if meant := [dead for dead in read if selection.takes(dead, now)]:
            yield meant


def add_to(groups: dict[str, Group], found: Iterable[DeadLetter]) -> None:
    """Count them in, by reason."""
    for dead in found:
        groups.setdefault(dead.reason, Group(dead.reason, dead.id, dead.error)).add(dead)


async def gather(
    queue: DeadLetterQueue, selection: Selection, trusted: frozenset[str], progress: Progress
) -> tuple[dict[str, Group], list[Delivery]]:
    """Those that are meant, by reason, and what to give to `queue.remove` to be rid of them."""
    groups: dict[str, Group] = {}
    deliveries: list[Delivery] = []
    async for found in select(queue, selection, trusted, progress):
        add_to(groups, found)
        # Their bodies may be many gigabytes in all.
        deliveries += [msgspec.structs.replace(dead.delivery, body=b"", headers={}) for dead in found]
    return groups, deliveries


async def redrive(
    queue: DeadLetterQueue,
    publisher: Publisher,
    selection: Selection,
    trusted: frozenset[str],
    *,
    rate: float | None = None,
    dry_run: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Submit again what is meant; remove each only after the broker has confirmed it. Raises BrokerUnavailable.

    Whatever interrupts it, what was submitted and not removed is submitted once more the next time, under the same
    id: a duplicate, which adds nothing.

    Args:
        queue: where they are.
        publisher: of the service's user, who may submit for any customer.
        selection: which.
        trusted: the service's users.
        rate: most in a second.
        dry_run: count only.
        progress: see `Progress`.
    """
    report = Report()
    pace = _Pace(rate)
    if not dry_run:
        await publisher.ready()
    async for found in select(queue, selection, trusted, progress):
        report.looked += len(found)
        free = []
        for dead in found:
            if why := dead_letters.redrive_blocker(dead, trusted):
                report.kept[why] += 1
            else:
                free.append(dead)
        for start in range(0, len(free), pace.chunk):
            chunk = free[start : start + pace.chunk]
            if dry_run:
                report.done.update(dead.reason for dead in chunk)
            elif not await _submit(queue, publisher, chunk, report):
                return report
            else:
                await pace.keep(len(chunk))
    return report


async def _submit(queue: DeadLetterQueue, publisher: Publisher, chunk: Sequence[DeadLetter], report: Report) -> bool:
    """Whether all were confirmed."""
    outcomes = await publisher.publish([dead_letters.resubmission(dead) for dead in chunk])
    confirmed = [dead for dead, out in zip(chunk, outcomes, strict=True) if out is PublishOutcome.CONFIRMED]
    await queue.remove([dead.delivery for dead in confirmed])
    report.done.update(dead.reason for dead in confirmed)
    report.failed.update(str(out) for out in outcomes if out is not PublishOutcome.CONFIRMED)
    return not report.failed


class _Pace:
    """Keeps to a rate, in chunks; time that was lost is not caught up."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = 0.0
        self.chunk = _CHUNK if rate is None else max(1, min(_CHUNK, int(rate * _TICK)))

    async def keep(self, sent: int) -> None:
        if self._rate is not None:
            now = time.monotonic()
            self._next = max(now, self._next) + sent / self._rate
            await asyncio.sleep(self._next - now)
