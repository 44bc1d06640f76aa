"""Admission: claim the idempotency key, then charge the quota. The shim and the worker share this module.

A claim is created first; existing entries are read only if the claim fails. A claim is a lease: if its owner crashes, a
retry is delayed by the rest of the lease. Nothing is lost, because ids are computed and every later step can be
repeated; only the charge may then count twice.

The order makes it safe: claim, charge, publish, confirm, then `queued` (shim) or `accepted` (worker). A crash between
two steps can charge twice what was in flight, but never publishes what was not charged.
"""

import contextlib
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol

import msgspec
import structlog

from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Change, Charge, Entry, Step, item_entries, submission_entry
from ingest.domain.ports import Ledger, Quotas
from ingest.domain.submissions import Submission
from ingest.domain.trace import Trace

DEFAULT_LEASE: Final = 30.0

_log = structlog.get_logger(__name__)


class Request(msgspec.Struct, frozen=True, gc=False):
    """A submission to admit.

    `origin` is the AMQP message_id of a direct submission, otherwise empty. `trace` is the client's trace context.
    """

    submission: Submission
    customer: Customer
    origin: str = ""
    trace: Trace | None = None


class Verdict(StrEnum):
    """The result of an admission, or of the publish that follows it."""

    ADMITTED = "admitted"
    """Claimed and charged. The caller publishes it, then calls `queued` or `accepted`, or `release` if that fails."""
    REPLAY = "replay"
    """The key was used before; `Decision.entry` is the original."""
    CONTENDED = "contended"
    """Another attempt holds a live claim on the key, or on the key of an item."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    UNCONFIRMED = "unconfirmed"
    """Admitted, but the broker did not confirm the publish; the claim was released. Only the shim uses it."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The verdict on one request.

    `entry` is the submission's ledger entry: its own, the original's (REPLAY), or the other attempt's (CONTENDED).
    `owned` are the entries that this admission claimed, `entry` first. `charge` is what was charged now, in tasks.
    `replayed` are the ids of the batch's tasks that were accepted before.
    """

    verdict: Verdict
    request: Request
    entry: Entry
    owned: tuple[Entry, ...] = ()
    charge: Charge | None = None
    replayed: tuple[str, ...] = ()

    @property
    def mismatch(self) -> bool:
        """Whether this is a replay whose body differs from the original."""
        return self.verdict is Verdict.REPLAY and self.entry.fingerprint != self.request.submission.fingerprint


class _Store(Ledger, Quotas, Protocol):
    """What admission needs from a store."""


class Admission:
    """Admits lists of requests against one store.

    Args:
        store: ledger and quotas.
        lease: how long a claim lasts, in seconds. Callers finish or give up well before.
        clock: Unix time in seconds.
    """

    def __init__(self, store: _Store, *, lease: float = DEFAULT_LEASE, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._lease = int(lease * 1000)
        self._clock = clock
        self._pending_releases: list[Change] = []

    async def admit(self, requests: Sequence[Request]) -> list[Decision]:
        """Decide on every request, in order.

        Raises:
            StoreUnavailable: nothing is decided. What was charged is refunded, and claims made so far are released,
                at the latest before the next admission.
        """
        if self._pending_releases:
            await self._apply_releases([])
        attempt = _Attempt(self._store, requests, self._clock, self._lease)
        try:
            return await attempt.run()
        except StoreUnavailable:
            with contextlib.suppress(StoreUnavailable):
                await self._store.refund(attempt.granted)
            with contextlib.suppress(StoreUnavailable):
                await self._apply_releases([Change(Step.RELEASE, entry) for entry in attempt.owned_entries()])
            raise

    async def queued(self, decisions: Sequence[Decision]) -> None:
        """Record that the broker confirmed these submissions. Entries that are accepted already stay accepted.

        Raises:
            StoreUnavailable: some entries may still be claimed; the worker settles them.
        """
        await self._store.apply([Change(Step.QUEUE, entry) for decision in decisions for entry in decision.owned])

    async def accepted(self, entries: Sequence[Entry]) -> None:
        """Settle: record that all events of these entries are confirmed. Raises StoreUnavailable."""
        await self._store.accept(entries)

    async def release(self, decisions: Sequence[Decision], *, refund: bool) -> None:
        """Release the claims of failed publishes, so that a retry can continue at once.

        A release that fails is logged and retried before the next admission; no error is raised.

        Args:
            decisions: ADMITTED ones.
            refund: also take the charge back. Only if the publish certainly had no effect; otherwise the entry
                remembers its charge, and a retry is free.
        """
        if not decisions:
            return
        if refund:
            try:
                # Before the release: a crash in between leaves entries that say "not charged", which is then true.
                await self._store.refund([decision.charge for decision in decisions if decision.charge])
            except StoreUnavailable as error:
                _log.warning("refund_failed", error=str(error), submissions=len(decisions))
                refund = False
        changes = []
        for decision in decisions:
            owned = decision.owned
            if not refund:
                owned = tuple([msgspec.structs.replace(e, charged=max(e.charged, e.tasks)) for e in owned])
            changes += [Change(Step.RELEASE, entry) for entry in owned]
        try:
            await self._apply_releases(changes)
        except StoreUnavailable as error:
            _log.warning("claim_release_failed", error=str(error), claims=len(changes))

    async def _apply_releases(self, changes: list[Change]) -> None:
        """Release claims and retry pending releases; keep them pending on failure. Raises StoreUnavailable."""
        changes = [*self._pending_releases, *changes]
        self._pending_releases = []
        try:
            await self._store.apply(changes)
        except StoreUnavailable:
            self._pending_releases += changes
            raise


class _PendingDecision:
    """One request while it is being decided."""

    __slots__ = ("charge", "contended", "entry", "is_replay", "owned", "owner", "replayed", "request")

    def __init__(self, request: Request, owner: str) -> None:
        self.request = request
        self.owner = owner
        self.entry: Entry
        self.owned: list[Entry] = []
        self.replayed: list[str] = []
        self.charge: Charge | None = None
        self.contended = False
        self.is_replay = False

    @property
    def verdict(self) -> Verdict:
        if self.is_replay:
            return Verdict.REPLAY
        if self.contended:
            return Verdict.CONTENDED
        return Verdict.ADMITTED if self.owned else Verdict.QUOTA_EXHAUSTED

    def decision(self) -> Decision:
        return Decision(self.verdict, self.request, self.entry, tuple(self.owned), self.charge, tuple(self.replayed))

    def drop_claims(self) -> None:
        """Forget the claims, which were released or deleted in the store."""
        self.owned.clear()
        self.charge = None


class _Attempt:
    """One admission of a list of requests: claim the submissions, then the keyed items of batches, then charge."""

    def __init__(self, store: _Store, requests: Sequence[Request], clock: Callable[[], float], lease: int) -> None:
        self._store = store
        self._clock = clock
        self._now = now = int(clock() * 1000)
        self._lease_end = now + lease
        self._month = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y-%m")
        # One owner per request, not per attempt: only one of two equal ids in a list may win.
        owner = uuid.uuid4().hex
        self._pending = [_PendingDecision(request, f"{owner}.{i}") for i, request in enumerate(requests)]
        self.granted: list[Charge] = []
        """What the store has charged so far."""

    async def run(self) -> list[Decision]:
        await self._claim_submissions()
        batches = [p for p in self._pending if p.owned and p.request.submission.kind is SubmissionKind.BATCH]
        if batches:
            await self._claim_items(batches)
        if self._clock() * 1000 >= self._lease_end:
            # The process was suspended. Other attempts may have taken the claims over, and been charged for them.
            raise StoreUnavailable("the claims expired before they were charged")
        await self._charge([pending for pending in self._pending if pending.owned])
        return [pending.decision() for pending in self._pending]

    def owned_entries(self) -> list[Entry]:
        """Every entry that is claimed and not released."""
        return [entry for pending in self._pending for entry in pending.owned]

    async def _claim_submissions(self) -> None:
        wanted = [
            submission_entry(
                pending.request.submission,
                self._now,
                pending.request.customer.retention,
                owner=pending.owner,
                lease=self._lease_end,
                origin=pending.request.origin,
            )
            for pending in self._pending
        ]
        stored, held = await self._claim(self._pending, wanted)
        for pending, entry, is_held in zip(self._pending, stored, held, strict=True):
            pending.entry = entry
            if is_held:
                pending.owned.append(entry)
            elif entry.is_durable:
                pending.is_replay = True
            else:
                pending.contended = True

    async def _claim_items(self, batches: list[_PendingDecision]) -> None:
        claimants: list[_PendingDecision] = []
        wanted: list[Entry] = []
        for pending in batches:
            items = item_entries(
                pending.request.submission,
                pending.entry.created_at,
                pending.request.customer.retention,
                owner=pending.owner,
                lease=self._lease_end,
            )
            claimants += [pending] * len(items)
            wanted += items
        stored, held = await self._claim(claimants, wanted)
        for pending, entry, is_held in zip(claimants, stored, held, strict=True):
            if is_held:
                pending.owned.append(entry)
            elif not entry.is_durable:
                pending.contended = True
            elif entry.origin != pending.request.submission.id:
                pending.replayed.append(entry.id)
            # Otherwise an earlier attempt of this batch made the item durable and crashed. It is charged already, but
            # it is published again: a worker that finished this attempt's message drops the earlier one.
        await self._yield_contended([pending for pending in batches if pending.contended])

    async def _claim(
        self, claimants: Sequence[_PendingDecision], wanted: Sequence[Entry]
    ) -> tuple[list[Entry], list[bool]]:
        """Claim each entry for its claimant, and take over claims whose lease has ended.

        Returns what is stored now, and for each entry whether the claimant holds it.
        """
        stored = await self._store.claim(wanted)
        held = [entry.owner == p.owner and not entry.is_durable for p, entry in zip(claimants, stored, strict=True)]
        expired = [
            index
            for index, entry in enumerate(stored)
            if not held[index] and not entry.is_durable and entry.lease <= self._now
        ]
        if expired:
            takeovers = [Change(Step.TAKE_OVER, _inherit(wanted[index], stored[index])) for index in expired]
            for index, entry in zip(expired, await self._store.apply(takeovers), strict=True):
                if entry is not None:
                    stored[index], held[index] = entry, True
        return stored, held

    async def _charge(self, claimants: list[_PendingDecision]) -> None:
        """Charge each customer in one call; if the sum exceeds the quota, charge the requests one by one."""
        groups = defaultdict(list)
        for pending in claimants:
            pending.charge = self._charge_of(pending)
            if pending.charge is not None:
                groups[pending.request.customer.cust_id].append(pending)
        if not groups:
            return
        sums = [_sum(group) for group in groups.values()]
        answers = await self._store.charge(sums)
        self.granted += [charge for charge, granted in zip(sums, answers, strict=True) if granted]
        for group, granted in zip(groups.values(), answers, strict=True):
            if not granted:
                await self._drop_unpaid([pending for pending in group if not await self._charge_alone(group, pending)])

    async def _charge_alone(self, group: list[_PendingDecision], pending: _PendingDecision) -> bool:
        if len(group) == 1 or pending.charge is None:
            return False
        (granted,) = await self._store.charge([pending.charge])
        if granted:
            self.granted.append(pending.charge)
        return granted

    def _charge_of(self, pending: _PendingDecision) -> Charge | None:
        customer = pending.request.customer
        if customer.monthly_quota is None:
            return None
        count = sum(max(0, entry.tasks - entry.charged) for entry in pending.owned)
        return Charge(customer.cust_id, self._month, count, customer.monthly_quota) if count else None

    async def _drop_unpaid(self, refused: list[_PendingDecision]) -> None:
        """Delete the claims of requests that exceed the quota; release those that were charged earlier."""
        entries = [entry for pending in refused for entry in pending.owned]
        await self._store.apply([Change(Step.RELEASE if entry.charged else Step.FORGET, entry) for entry in entries])
        _drop_claims(refused)

    async def _yield_contended(self, contended: list[_PendingDecision]) -> None:
        """Release the claims of batches of which another attempt holds an item, so that neither waits for the other."""
        entries = [entry for pending in contended for entry in pending.owned]
        if entries:
            await self._store.apply([Change(Step.RELEASE, entry) for entry in entries])
        _drop_claims(contended)


def _inherit(wanted: Entry, expired: Entry) -> Entry:
    """Return the claim that takes over an expired one. The body may differ, so its fields come from `wanted`."""
    return msgspec.structs.replace(
        wanted,
        created_at=expired.created_at,
        retention=expired.retention,
        charged=expired.charged,
        generation=expired.generation,
    )


def _sum(group: list[_PendingDecision]) -> Charge:
    charges = [pending.charge for pending in group if pending.charge is not None]
    return msgspec.structs.replace(charges[0], count=sum(charge.count for charge in charges))


def _drop_claims(decisions: Iterable[_PendingDecision]) -> None:
    for pending in decisions:
        pending.drop_claims()
