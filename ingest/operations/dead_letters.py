"""Select, group, redrive and remove dead letters. The same for every broker."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

import msgspec

from ingest.domain import dead_letters
from ingest.domain.dead_letters import DeadLetter, body_fields
from ingest.domain.events import rfc3339
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.ports import DeadLetterQueue, Publisher
from ingest.domain.trace import trace_of
from ingest.operations.remedies import remedy
from ingest.waiting import TimeSlices, to_the_end

_CHUNK: Final = 200
_TICK: Final = 0.1
"""Seconds; at a limited rate, so many seconds' worth of messages are sent at once."""


class Progress:
    """Counts dead letters while an operation runs.

    `done` were redriven, exported or removed. `handled` are these, and those for which there is nothing to do.
    `undated` are those that were left out because an age is given and theirs is unknown.
    """

    def __init__(self) -> None:
        self.handled = 0
        self.done = 0
        self.undated = 0

    def add(self, handled: int, done: int = 0) -> None:
        """Count further dead letters."""
        self.handled += handled
        self.done += done


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Selects dead letters. A field that is empty or None does not restrict. Ages are in seconds."""

    ids: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    customer: str | None = None
    older_than: float | None = None
    newer_than: float | None = None

    def lacks_age(self, dead: DeadLetter) -> bool:
        """Return whether the dead letter is left out only because its age is unknown."""
        if dead.died_at is not None or (self.older_than is None and self.newer_than is None):
            return False
        return msgspec.structs.replace(self, older_than=None, newer_than=None).takes(dead, 0)

    def takes(self, dead: DeadLetter, now: float) -> bool:
        """Return whether the dead letter is selected. One of unknown age is not, if an age is given."""
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


class Ages(msgspec.Struct, kw_only=True):
    """How many dead letters there are, and when the first and the last of them died.

    Times are in Unix seconds, None if none is known; `undated` counts the dead letters without.
    """

    count: int = 0
    oldest: float | None = None
    newest: float | None = None
    undated: int = 0

    def include(self, died_at: float | None) -> None:
        """Count a dead letter."""
        self.count += 1
        if died_at is None:
            self.undated += 1
            return
        self.oldest = min(died_at, self.oldest or died_at)
        self.newest = max(died_at, self.newest or died_at)


class Group(Ages):
    """The dead letters of one reason; `example` is the last; `remedies` counts the advice."""

    reason: str
    example: str
    error: str
    customers: Counter[str] = msgspec.field(default_factory=Counter)
    remedies: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, dead: DeadLetter) -> None:
        self.include(dead.died_at)
        self.example, self.error = dead.id, dead.error
        self.customers[dead.cust_id] += 1
        self.remedies[remedy(dead)] += 1


class Report(msgspec.Struct):
    """The result of a redrive.

    `done` counts the redriven ones by reason, in a dry run those that would be. `kept` counts by sentence those that
    must not be submitted again. `failed` counts by outcome those that the broker did not confirm; they are still in
    the queue, and the rest was not tried. The report is correct at every moment, so also after an interruption.
    """

    matched: int = 0
    done: Counter[str] = msgspec.field(default_factory=Counter)
    kept: Counter[str] = msgspec.field(default_factory=Counter)
    failed: Counter[str] = msgspec.field(default_factory=Counter)

    @property
    def not_tried(self) -> int:
        """How many were selected and then not tried, because the redrive ended before."""
        return self.matched - self.done.total() - self.kept.total() - self.failed.total()


async def select(
    queue: DeadLetterQueue, selection: Selection, trusted: frozenset[str], progress: Progress | None = None
) -> AsyncIterator[list[DeadLetter]]:
    """Yield the selected dead letters in lists, oldest first. `progress` counts the others, which are handled."""
    now = time.time()
    slices = TimeSlices()
    async for deliveries in queue.browse():
        for start in range(0, len(deliveries), _CHUNK):
            batch = [dead_letters.read(delivery, trusted) for delivery in deliveries[start : start + _CHUNK]]
            await slices.between()  # there may be many deliveries, and the console answers others meanwhile
            selected = [dead for dead in batch if selection.takes(dead, now)]
            if progress is not None:
                progress.add(len(batch) - len(selected))
                progress.undated += sum(map(selection.lacks_age, batch))
            if selected:
                yield selected


def add_to(groups: dict[str, Group], batch: Iterable[DeadLetter]) -> None:
    """Add dead letters to the groups of their reasons."""
    for dead in batch:
        groups.setdefault(dead.reason, Group(dead.reason, dead.id, dead.error)).add(dead)


async def gather(
    queue: DeadLetterQueue, selection: Selection, trusted: frozenset[str], progress: Progress
) -> tuple[dict[str, Group], list[Delivery]]:
    """Return the selected dead letters by reason, and the deliveries to pass to `remove`."""
    groups: dict[str, Group] = {}
    deliveries: list[Delivery] = []
    async for batch in select(queue, selection, trusted, progress):
        add_to(groups, batch)
        # Without bodies, which may have many gigabytes in total.
        deliveries += [msgspec.structs.replace(dead.delivery, body=b"", headers={}) for dead in batch]
        progress.add(len(batch))
    return groups, deliveries


async def remove(queue: DeadLetterQueue, deliveries: Sequence[Delivery], progress: Progress) -> None:
    """Remove dead letters in chunks; `progress` is correct also after an interruption. Raises BrokerUnavailable."""

    async def remove_chunk(chunk: Sequence[Delivery]) -> None:
        await queue.remove(chunk)
        progress.add(len(chunk), len(chunk))

    for start in range(0, len(deliveries), _CHUNK):
        await to_the_end(remove_chunk(deliveries[start : start + _CHUNK]))


async def redrive(
    queue: DeadLetterQueue,
    publisher: Publisher,
    selection: Selection,
    trusted: frozenset[str],
    *,
    rate: float | None = None,
    dry_run: bool = False,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Report:
    """Submit the selected dead letters again; remove each one only after the broker has confirmed it.

    If it is cancelled, it first finishes the chunk that it has begun. If it crashes, a dead letter that was submitted
    and not removed is submitted again the next time. It has the same id, so it is a duplicate, which adds nothing.

    Args:
        queue: the dead letters.
        publisher: publishes as the service's user, who may submit for any customer.
        selection: which ones.
        trusted: the service's users.
        rate: the most per second; None for no limit.
        dry_run: only count them.
        report: filled in and returned; pass one to read it after an interruption or an error.
        progress: counts the redriven ones as done.

    Raises:
        BrokerUnavailable: the broker blocks publishers, or the connection was lost.
    """
    report = report if report is not None else Report()
    progress = progress if progress is not None else Progress()
    pace = _Pace(rate)
    if not dry_run:
        await publisher.ready()
    async for batch in select(queue, selection, trusted, progress):
        report.matched += len(batch)
        redrivable = _redrivable(batch, trusted, report)
        progress.add(len(batch) - len(redrivable))
        for start in range(0, len(redrivable), pace.chunk):
            chunk = redrivable[start : start + pace.chunk]
            if dry_run:
                report.done.update(dead.reason for dead in chunk)
                progress.add(len(chunk))
            elif not await to_the_end(_submit(queue, publisher, chunk, report, progress)):
                return report
            else:
                await pace.keep(len(chunk))
    return report


def _redrivable(batch: Sequence[DeadLetter], trusted: frozenset[str], report: Report) -> list[DeadLetter]:
    """Return the dead letters that may be submitted again; report the others as kept."""
    redrivable = []
    for dead in batch:
        if blocker := dead_letters.redrive_blocker(dead, trusted):
            report.kept[blocker] += 1
        else:
            redrivable.append(dead)
    return redrivable


async def _submit(
    queue: DeadLetterQueue, publisher: Publisher, chunk: Sequence[DeadLetter], report: Report, progress: Progress
) -> bool:
    """Submit dead letters again and remove the confirmed ones; return whether all were confirmed."""
    outcomes = await publisher.publish([dead_letters.resubmission(dead) for dead in chunk])
    confirmed = [dead for dead, out in zip(chunk, outcomes, strict=True) if out is PublishOutcome.CONFIRMED]
    await queue.remove([dead.delivery for dead in confirmed])
    report.done.update(dead.reason for dead in confirmed)
    report.failed.update(str(out) for out in outcomes if out is not PublishOutcome.CONFIRMED)
    progress.add(len(chunk), len(confirmed))
    return not report.failed


def details(dead: DeadLetter) -> dict[str, Any]:
    """Return one dead letter completely, with secrets.

    A trimmed one has `trimmed` instead of the body. `trace_id` is there if the submission had a trace context.
    """
    origin = dead.origin
    fields: dict[str, Any] = {
        "id": dead.id,
        "reason": dead.reason,
        "error": dead.error,
        "errors": list(dead.errors),
        "cust_id": dead.cust_id,
        "died_at": _time(dead.died_at),
        "redrives": dead.redrives.count,
        "first_died_at": _time(dead.died_at if not dead.redrives.count else dead.redrives.first_died_at),
        "deliveries": dead.delivery.deliveries,
    }
    if (trace := trace_of(dead.delivery.headers)) is not None:
        fields["trace_id"] = trace.trace_id
    if origin is None:
        return fields | {"routing_key": dead.delivery.routing_key} | body_fields(dead.delivery.body)
    submission = msgspec.structs.asdict(origin)
    del submission["body"]
    if dead.trimmed is not None:
        fields["trimmed"] = msgspec.structs.asdict(dead.trimmed)
    else:
        submission |= body_fields(origin.body)
    return fields | {"submission": submission}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(int(seconds * 1000))


class _Pace:
    """Keeps a rate, in chunks. It does not catch up after a delay."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = 0.0
        self.chunk = _CHUNK if rate is None else max(1, min(_CHUNK, int(rate * _TICK)))

    async def keep(self, sent: int) -> None:
        if self._rate is not None:
            now = time.monotonic()
            self._next = max(now, self._next) + sent / self._rate
            await asyncio.sleep(self._next - now)
