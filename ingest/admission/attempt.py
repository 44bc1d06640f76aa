"""One admission of a list of requests: claim the submissions, then the keyed items of batches, then charge."""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from ingest.admission.decision import Decision, Request, Verdict
from ingest.domain.errors import StoreUnavailable
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import UNLIMITED, Change, Charge, Doubt, Entry, Phase, Step, item_entries, submission_entry
from ingest.domain.ports import Ledger, Quotas


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
        self.is_replay = False

    @property
    def verdict(self) -> Verdict:
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

    def drop_claims(self) -> None:
        """Forget the claims, which were released or deleted in the store."""
        self.owned.clear()
        self.charge = None


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
        self._undecided: Sequence[Entry] = ()
        self.granted: list[Charge] = []
        """What the store has charged so far."""

    async def run(self) -> list[Decision]:
        await self._claim_submissions()
        batches = [p for p in self._pending if p.owned and p.request.submission.kind is SubmissionKind.BATCH]
        if batches:
            await self._claim_items(batches)
        self._check_lease()
        await self._charge([pending for pending in self._pending if pending.owned])
        self._check_lease()
        return [pending.decision(self._held_until) for pending in self._pending]

    def _check_lease(self) -> None:
        """Raise StoreUnavailable if the process was suspended until another attempt may have taken the claims over."""
        if self._monotonic() >= self._held_until:
            raise StoreUnavailable("the claims expired before they were charged")

    def claims_to_give_back(self) -> list[Change]:
        """Return the changes that give back every claim of this attempt, also those of a call that has failed."""
        owned = [give_back(entry) for pending in self._pending for entry in pending.owned]
        undecided = [Change(Step.FORGET, msgspec.structs.replace(entry, generation=1)) for entry in self._undecided]
        return owned + undecided

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
        for pending, entry, is_held in zip(self._pending, stored, held, strict=True):
            pending.entry = entry
            if is_held:
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
        await self._yield_contended([pending for pending in batches if pending.contended])

    async def _claim(
        self, claimants: Sequence[_PendingDecision], wanted: Sequence[Entry]
    ) -> tuple[list[Entry], list[bool]]:
        """Claim each entry for its claimant, and take over claims whose lease has ended.

        Returns what is stored now, and for each entry whether the claimant holds it.
        """
        self._undecided = wanted
        stored = await self._store.claim(wanted)
        held = [entry.owner == p.owner and not entry.is_durable for p, entry in zip(claimants, stored, strict=True)]
        claimed = [index for index, entry in enumerate(stored) if not held[index] and not entry.is_durable]
        if claimed:
            takeovers = [self._take_over(wanted[index], stored[index]) for index in claimed]
            for index, entry in zip(claimed, await self._store.apply(takeovers), strict=True):
                if entry is not None:
                    stored[index], held[index] = entry, True
        self._undecided = ()
        return stored, held

    def _take_over(self, wanted: Entry, stored: Entry) -> Change:
        """Return the change that takes over a claim whose lease has ended.

        If the body differs, the doubt about the first one must have ended, too. A claim whose lease ran out is always
        in doubt, because its owner may have crashed after the publish.
        """
        idle = stored.lease
        is_in_doubt = bool(stored.lease) or stored.doubt is Doubt.OPEN
        if stored.fingerprint != wanted.fingerprint and is_in_doubt:
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
        limit = UNLIMITED if customer.monthly_quota is None else customer.monthly_quota
        count = sum(max(0, entry.tasks - entry.charged) for entry in pending.owned)
        return Charge(customer.cust_id, self._month, count, limit) if count else None

    async def _drop_unpaid(self, refused: list[_PendingDecision]) -> None:
        """Give back the claims of requests that exceed the quota."""
        await self._store.apply([give_back(entry) for pending in refused for entry in pending.owned])
        _drop_claims(refused)

    async def _yield_contended(self, contended: list[_PendingDecision]) -> None:
        """Give back the claims of batches that share an item with another attempt, so that neither waits."""
        entries = [entry for pending in contended for entry in pending.owned]
        if entries:
            await self._store.apply([give_back(entry) for entry in entries])
        _drop_claims(contended)


def month_of(milliseconds: int) -> str:
    """Return the month of a Unix time, as charges name it: `YYYY-MM`, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m")


def _was_accepted_with_another_body(stored: Entry, wanted: Entry) -> bool:
    return stored.phase is Phase.ACCEPTED and stored.fingerprint != wanted.fingerprint


def _inherit(wanted: Entry, expired: Entry) -> Entry:
    """Return the claim that takes over an expired one. The body may differ, so its fields come from `wanted`."""
    return msgspec.structs.replace(
        wanted,
        created_at=expired.created_at,
        retention=expired.retention,
        charged=expired.charged,
        charged_month=expired.charged_month,
        doubt=expired.doubt,
        generation=expired.generation,
    )


def _sum(group: list[_PendingDecision]) -> Charge:
    charges = [pending.charge for pending in group if pending.charge is not None]
    return msgspec.structs.replace(charges[0], count=sum(charge.count for charge in charges))


def _drop_claims(decisions: Iterable[_PendingDecision]) -> None:
    for pending in decisions:
        pending.drop_claims()
