"""Bounds what the dead letters of one customer take of the broker's disk: the bodies of the oldest are removed.

A queue has to be read completely to know what is in it, and the bodies do not fit into memory. So it is read twice:
first to add up the bytes of each customer, then, only if one has too many, to trim the oldest ones.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from ingest.backends import DeadLetterAccess
from ingest.domain import dead_letters
from ingest.domain.dead_letters import DeadLetter
from ingest.domain.events import rfc3339
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import DeadLetterQueue, Publisher
from ingest.domain.trimming import can_be_trimmed, fingerprint, sender, size_of, trimmed_letter
from ingest.waiting import to_the_end

_CHUNK: Final = 200

_log = structlog.get_logger(__name__)


class OpenDeadLetters(Protocol):
    """Opens `ingest.dead`, as `BrokerBackend.open_dead_letters`."""

    def __call__(self, *, change: bool) -> AbstractAsyncContextManager[DeadLetterAccess]: ...


class CustomerBytes(msgspec.Struct):
    """The dead letters of one customer, in bytes.

    `found` is what they had before. `trimmed` and `copies` count: a copy is removed whole, because the same dead letter
    is in the queue trimmed, which happens after a crash. `removed` is the bytes of both. In a dry run these say what
    would be done.
    """

    found: int = 0
    trimmed: int = 0
    copies: int = 0
    removed: int = 0

    @property
    def kept(self) -> int:
        """The bytes that stay."""
        return self.found - self.removed


class TrimReport(msgspec.Struct):
    """The result of one run, correct at every moment, so also after an interruption.

    `customers` are those with more than `keep` bytes. `failed` counts by outcome those that the broker did not confirm;
    they are unchanged, and the rest was not tried.
    """

    keep: int
    customers: dict[str, CustomerBytes] = {}
    failed: Counter[str] = msgspec.field(default_factory=Counter)

    @property
    def above(self) -> dict[str, int]:
        """Customer to bytes, of those that still have more than `keep`."""
        return {customer: usage.kept for customer, usage in self.customers.items() if usage.kept > self.keep}


async def trim(
    open_dead_letters: OpenDeadLetters,
    report: TrimReport,
    *,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> None:
    """Trim the oldest dead letters of each customer that has more than `report.keep` bytes, and log a warning.

    The trimmed ones move to the end of the queue. If it is cancelled, it first finishes the chunk that it has begun. If
    it crashes, a dead letter can be in the queue twice, as it was and trimmed: the next run removes the former.

    Args:
        open_dead_letters: opens the queue. It is opened to change it only if there is something to trim.
        report: filled in.
        dry_run: only report.
        clock: Unix time in seconds.

    Raises:
        BrokerUnavailable: the broker blocks publishers, or the connection was lost.
        ConfigurationError: the queue cannot be read or changed.
    """
    async with open_dead_letters(change=False) as access:
        size = await access.queue.size()
        if size is not None and size <= report.keep:
            return
        usage, present = await _measure(access)
    report.customers = {customer: CustomerBytes(found) for customer, found in usage.items() if found > report.keep}
    if not report.customers:
        return
    try:
        async with open_dead_letters(change=not dry_run) as access:
            publisher = None if dry_run else await access.publisher()
            if publisher is not None:
                await publisher.ready()
            await _Trimming(access, publisher, report, present, rfc3339(int(clock() * 1000))).run()
    finally:
        if not dry_run:
            _warn(report)
    if report.failed:
        _log.warning("dead_letters_not_trimmed", outcomes=dict(report.failed))
    elif not dry_run:
        for customer, kept in report.above.items():
            _log.warning("dead_letters_above_limit", cust_id=customer, bytes_kept=kept, limit=report.keep)


async def _measure(access: DeadLetterAccess) -> tuple[dict[str, int], frozenset[bytes]]:
    """Return the bytes of each customer, and the fingerprints of what is trimmed already (100 bytes of memory each)."""
    usage: defaultdict[str, int] = defaultdict(int)
    present = set()
    async for deliveries in access.queue.browse():
        for delivery in deliveries:
            dead = dead_letters.read(delivery, access.trusted_users)
            usage[sender(dead, access.trusted_users)] += size_of(delivery)
            if dead.trimmed is not None:
                present.add(fingerprint(dead))
    return usage, frozenset(present)


class _Copy(NamedTuple):
    """A dead letter that is in the queue trimmed, too. The delivery is without its body, which may be large."""

    customer: str
    size: int
    delivery: Delivery


class _Trimming:
    """The second reading of the queue. Without a publisher it changes nothing.

    Args:
        access: the queue, open to change it.
        publisher: publishes as the service's user.
        report: has the customers to trim.
        present: fingerprints of the trimmed dead letters in the queue.
        now: the time, RFC 3339.
    """

    def __init__(
        self,
        access: DeadLetterAccess,
        publisher: Publisher | None,
        report: TrimReport,
        present: frozenset[bytes],
        now: str,
    ) -> None:
        self._queue: DeadLetterQueue = access.queue
        self._trusted = access.trusted_users
        self._publisher = publisher
        self._report = report
        self._present = present
        self._now = now
        self._excess = {customer: usage.found - report.keep for customer, usage in report.customers.items()}
        self._passed: set[bytes] = set()
        """Fingerprints of the trimmed dead letters that were read this time: they are certainly in the queue."""
        self._waiting: defaultdict[bytes, list[_Copy]] = defaultdict(list)
        """Fingerprint to what can be removed once the trimmed one has been read."""

    async def run(self) -> None:
        async for deliveries in self._queue.browse():  # to the end: stopping early changes the order of the queue
            due: list[tuple[DeadLetter, Message]] = []
            copies: list[_Copy] = []
            for delivery in deliveries:
                self._decide(dead_letters.read(delivery, self._trusted), due, copies)
            await to_the_end(self._remove(copies))
            for start in range(0, len(due), _CHUNK):
                if not await to_the_end(self._replace(due[start : start + _CHUNK])):
                    return

    def _decide(self, dead: DeadLetter, due: list[tuple[DeadLetter, Message]], copies: list[_Copy]) -> None:
        """Add a dead letter to those to trim, or to the copies to remove, or leave it as it is."""
        customer = sender(dead, self._trusted)
        if customer not in self._excess:
            return
        if dead.trimmed is not None:
            mark = fingerprint(dead)
            self._passed.add(mark)
            copies += self._waiting.pop(mark, [])
        elif self._excess[customer] > 0 and can_be_trimmed(dead):
            size = size_of(dead.delivery)
            mark = fingerprint(dead) if self._present else b""
            if mark in self._present:
                self._excess[customer] -= size
                copy = _Copy(customer, size, msgspec.structs.replace(dead.delivery, body=b"", headers={}))
                (copies if mark in self._passed else self._waiting[mark]).append(copy)
                return
            letter = trimmed_letter(dead, self._now)
            if (saved := size - size_of(letter)) > 0:
                self._excess[customer] -= saved
                due.append((dead, letter))

    async def _remove(self, copies: Sequence[_Copy]) -> None:
        if self._publisher is not None and copies:
            await self._queue.remove([copy.delivery for copy in copies])
        for copy in copies:
            usage = self._report.customers[copy.customer]
            usage.copies += 1
            usage.removed += copy.size

    async def _replace(self, chunk: Sequence[tuple[DeadLetter, Message]]) -> bool:
        """Publish trimmed dead letters and remove what they replace; return whether all were confirmed."""
        outcomes = [PublishOutcome.CONFIRMED] * len(chunk)
        if self._publisher is not None:
            outcomes = await self._publisher.publish([letter for _, letter in chunk])
        confirmed = [pair for pair, out in zip(chunk, outcomes, strict=True) if out is PublishOutcome.CONFIRMED]
        if self._publisher is not None:
            await self._queue.remove([dead.delivery for dead, _ in confirmed])
        for dead, letter in confirmed:
            usage = self._report.customers[sender(dead, self._trusted)]
            usage.trimmed += 1
            usage.removed += size_of(dead.delivery) - size_of(letter)
        self._report.failed.update(Counter(str(out) for out in outcomes if out is not PublishOutcome.CONFIRMED))
        return not self._report.failed


def _warn(report: TrimReport) -> None:
    for customer, usage in report.customers.items():
        if usage.trimmed or usage.copies:
            _log.warning(
                "dead_letters_trimmed",
                cust_id=customer,
                trimmed=usage.trimmed,
                copies=usage.copies,
                bytes_removed=usage.removed,
                bytes_kept=usage.kept,
            )
