"""One admission of a list of requests: claim the submissions, then the keyed items of batches, then charge."""

import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import msgspec
import structlog

from ingest.admission.decision import Decision, Request, Verdict
from ingest.domain.errors import StoreUnavailable
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import (
    UNDECIDED,
    UNFINISHED,
    UNLIMITED,
    Change,
    Charge,
    Doubt,
    Entry,
    Phase,
    Step,
    Undecided,
    item_entries,
    submission_entry,
)
from ingest.domain.ports import Ledger, Quotas

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class AdmissionStore(Ledger, Quotas, Protocol):
    """What admission needs from a store."""


def give_back(entry: Entry) -> Change:
    """Return the change that gives back a claim whose submission this attempt did not publish.

    A claim that this attempt created is deleted. One that it took over stays, because an earlier attempt may have
    published the submission; it is released with what that attempt has charged.
    """
    return Change(Step.FORGET if entry.generation == 1 else Step.RELEASE, entry)


class _PendingDecision:
    """One request while it is being decided."""

    __slots__ = (
        "charge",
        "contended",
        "entry",
        "is_replay",
        "item_created_at",
        "owned",
        "owner",
        "replayed",
        "request",
        "undecided",
    )

    def __init__(self, request: Request, owner: str) -> None:
        self.request = request
        self.owner = owner
        self.entry: Entry
        self.owned: list[Entry] = []
        self.replayed: list[str] = []
        self.item_created_at: dict[str, int] = {}
        self.charge: Charge | None = None
        self.contended = False
        self.undecided = False
        self.is_replay = False

    @property
    def verdict(self) -> Verdict:
        if self.undecided:
            return Verdict.UNDECIDED
        if self.is_replay:
            return Verdict.REPLAY
        if self.contended:
            return Verdict.CONTENDED
        return Verdict.ADMITTED if self.owned else Verdict.QUOTA_EXHAUSTED

    def decision(self, held_until: float) -> Decision:
        return Decision(
            self.verdict,
            self.request,
            self.entry,
            tuple(self.owned),
            self.charge,
            tuple(self.replayed),
            held_until,
            self.item_created_at,
        )

    def give_up(self) -> list[Change]:
        """Drop the claims and the charge; return the changes that give the claims back."""
        changes = [give_back(entry) for entry in self.owned]
        self.owned.clear()
        self.charge = None
        return changes


class Attempt:
    """One admission of a list of requests. Arguments as `Admission`."""

    def __init__(
        self,
        store: AdmissionStore,
        requests: Sequence[Request],
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        lease: float,
        doubt: float,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._held_until = monotonic() + lease
        self._lease = int(lease * 1000)
        self._doubt = int(doubt * 1000)
        self._now = now = int(clock() * 1000)
        self._month = month_of(now)
        # One owner per request, not per attempt: only one of two equal ids in a list may win.
        owner = uuid.uuid4().hex
        self._pending = [_PendingDecision(request, f"{owner}.{i}") for i, request in enumerate(requests)]
        self._failure: StoreUnavailable | None = None
        self.granted: list[Charge] = []
        """What the store has charged so far."""
        self.releases: list[Change] = []
        """Changes that give back claims which no decision holds. The caller applies them, also if `run` raises."""

    async def run(self) -> list[Decision]:
        """Return the decisions, in order. Raises StoreUnavailable if nothing could be decided."""
        try:
            await self._run()
        except StoreUnavailable:
            for pending in self._pending:
                self.releases += pending.give_up()
            raise
        return [pending.decision(self._held_until) for pending in self._pending]

    async def _run(self) -> None:
        await self._claim_submissions()
        batches = [p for p in self._pending if p.owned and p.request.submission.kind is SubmissionKind.BATCH]
        if batches:
            await self._claim_items(batches)
        self._check_lease()
        await self._charge([pending for pending in self._pending if pending.owned])
        self._check_lease()
        if self._failure is not None and all(pending.undecided for pending in self._pending):
            raise self._failure

    def _check_lease(self) -> None:
        """Raise StoreUnavailable if the process was suspended until another attempt may have taken the claims over."""
        if self._monotonic() >= self._held_until:
            raise StoreUnavailable("the claims expired before they were charged")

    async def _answers(self, call: Awaitable[Sequence[T]], count: int) -> list[T | Undecided]:
        """Return the results of a call of the store; if it fails as a whole, each of the `count` is undecided.

        Requests that do not depend on this call can then be decided nevertheless.
        """
        try:
            return [*await call]
        except StoreUnavailable as error:
            self._failure = error
            return [UNDECIDED] * count

    async def _claim_submissions(self) -> None:
        wanted = [
            submission_entry(
                pending.request.submission,
                self._created_at(pending.request),
                pending.request.customer.retention,
                owner=pending.owner,
                lease=self._lease,
                origin=pending.request.origin,
            )
            for pending in self._pending
        ]
        stored, held = await self._claim(self._pending, wanted)
        for pending, own_entry, entry, is_held in zip(self._pending, wanted, stored, held, strict=True):
            pending.entry = entry or own_entry
            if not entry:
                pending.undecided = True
            elif is_held:
                pending.owned.append(entry)
            elif entry.is_durable:
                pending.is_replay = True
            else:
                pending.contended = True

    def _created_at(self, request: Request) -> int:
        """Return the creation time of a new entry: the one that the request states, if it is plausible.

        A time before the retention would belong to an earlier acceptance of the key, which has ended.
        """
        stated = request.created_at
        oldest = self._now - request.customer.retention * 1000
        return stated if stated is not None and oldest < stated <= self._now else self._now

    async def _claim_items(self, batches: list[_PendingDecision]) -> None:
        claimants: list[_PendingDecision] = []
        wanted: list[Entry] = []
        for pending in batches:
            items = item_entries(
                pending.request.submission,
                pending.entry.created_at,
                pending.request.customer.retention,
                owner=pending.owner,
                lease=self._lease,
            )
            claimants += [pending] * len(items)
            wanted += items
        stored, held = await self._claim(claimants, wanted)
        for pending, item, entry, is_held in zip(claimants, wanted, stored, held, strict=True):
            if not entry:
                pending.undecided = True
                continue
            if is_held:
                pending.owned.append(entry)
            elif not entry.is_durable:
                pending.contended = True
                continue
            elif entry.origin != item.origin or _was_accepted_with_another_body(entry, item):
                pending.replayed.append(entry.id)
                continue
            # If it is not held, an earlier attempt of this batch made it durable and crashed. It is charged already. It
            # is published again, because the worker that finishes this attempt's message drops the earlier attempt's
            # message, which may be the only one with the item.
            if entry.created_at != pending.entry.created_at:
                pending.item_created_at[entry.id] = entry.created_at
        # Neither of two batches that share an item waits for the other. A batch is never admitted in part.
        self._give_up(pending for pending in batches if pending.contended or pending.undecided)

    async def _claim(
        self, claimants: Sequence[_PendingDecision], wanted: Sequence[Entry]
    ) -> tuple[list[Entry | Undecided], list[bool]]:
        """Claim each entry for its claimant, and take over claims whose lease has ended.

        Returns what is stored now, and for each entry whether the claimant holds it.
        """
        stored = await self._answers(self._store.claim(wanted), len(wanted))
        held = [False] * len(stored)
        takeovers: dict[int, Change] = {}
        for index, entry in enumerate(stored):
            if not entry:
                self.releases.append(Change(Step.FORGET, msgspec.structs.replace(wanted[index], generation=1)))
            elif entry.is_durable:
                continue
            elif entry.owner == claimants[index].owner:
                held[index] = True
            else:
                takeovers[index] = self._take_over(wanted[index], entry)
        if takeovers:
            results = await self._answers(self._store.apply(list(takeovers.values())), len(takeovers))
            for (index, change), result in zip(takeovers.items(), results, strict=True):
                if result is UNDECIDED:
                    stored[index] = UNDECIDED
                    taken_over = msgspec.structs.replace(change.entry, generation=change.entry.generation + 1)
                    self.releases.append(give_back(taken_over))
                elif result is not None:
                    stored[index], held[index] = result, True
        return stored, held

    def _take_over(self, wanted: Entry, stored: Entry) -> Change:
        """Return the change that takes over a claim whose lease has ended.

        If the body differs, the doubt about the first one must have ended, too. A claim whose lease ran out is always
        in doubt, because its owner may have crashed after the publish. If its events may be out, only a worker ends it.
        """
        idle = stored.lease
        is_in_doubt = bool(stored.lease) or stored.doubt is Doubt.OPEN
        if stored.fingerprint != wanted.fingerprint and stored.doubt is Doubt.EVENTS:
            idle = UNFINISHED * 1000
        elif stored.fingerprint != wanted.fingerprint and is_in_doubt:
            idle = max(idle, self._doubt)
        return Change(Step.TAKE_OVER, _inherit(wanted, stored), idle)

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
        answers = await self._granted(sums)
        for group, granted in zip(groups.values(), answers, strict=True):
            for pending in group:
                is_granted = await self._granted_alone(pending) if granted is False and len(group) > 1 else granted
                if not is_granted:
                    pending.undecided = is_granted is UNDECIDED
                    self._give_up([pending])

    async def _granted_alone(self, pending: _PendingDecision) -> bool | Undecided:
        if pending.charge is None or self._failure is not None:
            return UNDECIDED  # an outage costs a call or two, not one for each request
        (granted,) = await self._granted([pending.charge])
        return granted

    async def _granted(self, charges: list[Charge]) -> list[bool | Undecided]:
        answers = await self._answers(self._store.charge(charges), len(charges))
        self.granted += [charge for charge, granted in zip(charges, answers, strict=True) if granted]
        return answers

    def _charge_of(self, pending: _PendingDecision) -> Charge | None:
        customer = pending.request.customer
        limit = UNLIMITED if customer.monthly_quota is None else customer.monthly_quota
        count = sum(max(0, entry.tasks - entry.charged) for entry in pending.owned)
        return Charge(customer.cust_id, self._month, count, limit) if count else None

    def _give_up(self, decisions: Iterable[_PendingDecision]) -> None:
        for pending in decisions:
            self.releases += pending.give_up()


def month_of(milliseconds: int) -> str:
    """Return the month of a Unix time, as charges name it: `YYYY-MM`, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m")


def _was_accepted_with_another_body(stored: Entry, wanted: Entry) -> bool:
    return stored.phase is Phase.ACCEPTED and stored.fingerprint != wanted.fingerprint


def _inherit(wanted: Entry, expired: Entry) -> Entry:
    """Return the claim that takes over an expired one. The body may differ, so its fields come from `wanted`."""
    doubt = expired.doubt
    if expired.lease and not doubt and wanted.fingerprint == expired.fingerprint:
        doubt = Doubt.OPEN  # its owner may have crashed after the publish; so it is in doubt if it is given back
    return msgspec.structs.replace(
        wanted,
        created_at=expired.created_at,
        retention=expired.retention,
        charged=expired.charged,
        charged_month=expired.charged_month,
        doubt=doubt,
        generation=expired.generation,
    )


def _sum(group: list[_PendingDecision]) -> Charge:
    charges = [pending.charge for pending in group if pending.charge is not None]
    return msgspec.structs.replace(charges[0], count=sum(charge.count for charge in charges))
