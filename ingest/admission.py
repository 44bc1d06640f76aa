"""Admission: claim the key, charge the quota. The one piece of code that shim and worker share.

Claim first, read only on conflict. A claim is a lease: whoever crashes holding one delays a retry by at most
`lease` seconds and loses nothing, as ids are computed and everything behind them is idempotent.

The order is what makes it safe. A claim comes before the charge, the charge before the publish, the publish's
confirm before `queued` (shim) or `accepted` (worker). So a crash in between may charge twice what was in flight,
but never publishes what was not charged.
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

from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Change, Charge, Entry, Step, item_entries, submission_entry
from ingest.domain.ports import Ledger, Quotas
from ingest.domain.submissions import Submission
from ingest.domain.trace import Trace

DEFAULT_LEASE: Final = 30.0


class Request(msgspec.Struct, frozen=True, gc=False):
    """A submission to admit. `origin` is the AMQP message_id of a direct submission, else empty.

    `trace` is the client's, to be passed on.
    """

    submission: Submission
    customer: Customer
    origin: str = ""
    trace: Trace | None = None


class Verdict(StrEnum):
    """What admission found."""

    ADMITTED = "admitted"
    """Claimed and charged: publish it, then say so with `queued` or `accepted`, or give it back."""
    REPLAY = "replay"
    """The key was used before; `Decision.entry` is the original."""
    BUSY = "busy"
    """Somebody else is submitting it at this moment."""
    QUOTA_EXHAUSTED = "quota_exhausted"


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The verdict on one request.

    `entry` is the submission's own ledger entry (the original's for a replay, the other's for BUSY). `owned` are
    the entries this admission holds, `entry` first; `charged` is what was charged just now, in tasks; `replayed`
    are the ids of a batch's tasks that were accepted before.
    """

    verdict: Verdict
    request: Request
    entry: Entry
    owned: tuple[Entry, ...] = ()
    charge: Charge | None = None
    replayed: tuple[str, ...] = ()

    @property
    def mismatch(self) -> bool:
        """Whether a replay came with another body than the original."""
        return self.verdict is Verdict.REPLAY and self.entry.fingerprint != self.request.submission.fingerprint


class _Store(Ledger, Quotas, Protocol):
    """What admission needs of a store."""


class Admission:
    """Admits lists of requests against one store.

    Args:
        store: ledger and quotas.
        lease: seconds for which a claim is held. Whoever admits must be done, or have given up, well before.
        clock: Unix time in seconds.
    """

    def __init__(self, store: _Store, *, lease: float = DEFAULT_LEASE, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._lease = int(lease * 1000)
        self._clock = clock
        self._owed: list[Change] = []

    async def admit(self, requests: Sequence[Request]) -> list[Decision]:
        """Decide on every request, in order.

        Raises:
            StoreUnavailable: nothing is decided. What was granted is refunded; claims made on the way are given back,
                at the latest before anything else is admitted here.
        """
        if self._owed:
            await self._let_go([])
        attempt = _Attempt(self._store, requests, self._clock, self._lease)
        try:
            return await attempt.run()
        except StoreUnavailable:
            with contextlib.suppress(StoreUnavailable):
                await self._store.refund(attempt.granted)
            with contextlib.suppress(StoreUnavailable):
                await self._let_go([Change(Step.RELEASE, entry) for entry in attempt.held()])
            raise

    async def queued(self, decisions: Sequence[Decision]) -> None:
        """The broker has confirmed these. An entry that has gone further meanwhile is left as it is."""
        await self._store.apply([Change(Step.QUEUE, entry) for decision in decisions for entry in decision.owned])

    async def accepted(self, entries: Sequence[Entry]) -> None:
        """All events of these are out."""
        await self._store.accept(entries)

    async def release(self, decisions: Sequence[Decision], *, refund: bool) -> None:
        """Give claims back after a failed publish, so that a retry resumes at once.

        With `refund` the charge is taken back too: only where the publish certainly had no effect. Otherwise the
        entry remembers that it was charged, and a retry is free.

        Raises:
            StoreUnavailable: it is made up for before anything else is admitted here.
        """
        if refund:
            # First the refund: a crash in between leaves entries that say uncharged, which is then true.
            await self._store.refund([decision.charge for decision in decisions if decision.charge])
        changes = []
        for decision in decisions:
            owned = decision.owned
            if not refund:
                owned = tuple([msgspec.structs.replace(e, charged=max(e.charged, e.tasks)) for e in owned])
            changes += [Change(Step.RELEASE, entry) for entry in owned]
        await self._let_go(changes)

    async def _let_go(self, changes: list[Change]) -> None:
        """Apply these and what is owed; they are owed where that does not go."""
        changes = [*self._owed, *changes]
        self._owed = []
        try:
            await self._store.apply(changes)
        except StoreUnavailable:
            self._owed += changes
            raise


class _Candidate:
    """One request on its way to a decision."""

    __slots__ = ("busy", "charge", "entry", "owned", "owner", "replay", "replayed", "request")

    def __init__(self, request: Request, owner: str) -> None:
        self.request = request
        self.owner = owner
        self.entry: Entry
        self.owned: list[Entry] = []
        self.replayed: list[str] = []
        self.charge: Charge | None = None
        self.busy = False
        self.replay = False

    @property
    def verdict(self) -> Verdict:
        if self.replay:
            return Verdict.REPLAY
        if self.busy:
            return Verdict.BUSY
        return Verdict.ADMITTED if self.owned else Verdict.QUOTA_EXHAUSTED

    def decision(self) -> Decision:
        return Decision(self.verdict, self.request, self.entry, tuple(self.owned), self.charge, tuple(self.replayed))


class _Claim(msgspec.Struct, gc=False):
    """An entry that a candidate wants, and once it was tried, what is stored."""

    candidate: _Candidate
    wanted: Entry
    entry: Entry
    held: bool = False


class _Attempt:
    """One pass over a list of requests: heads, then the items of batches that have keys, then the charge."""

    def __init__(self, store: _Store, requests: Sequence[Request], clock: Callable[[], float], lease: int) -> None:
        self._store = store
        self._clock = clock
        self._now = now = int(clock() * 1000)
        self._lease_end = now + lease
        self._month = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y-%m")
        # Unique per request, not only per attempt: of two equal ids in one list just one may win.
        name = uuid.uuid4().hex
        self._candidates = [_Candidate(request, f"{name}.{i}") for i, request in enumerate(requests)]
        self.granted: list[Charge] = []

    async def run(self) -> list[Decision]:
        await self._claim_heads()
        batches = [c for c in self._candidates if c.owned and c.request.submission.kind is SubmissionKind.BATCH]
        if batches:
            await self._claim_items(batches)
        if self._clock() * 1000 >= self._lease_end:
            # This process stood still. Others may have taken the claims over, and paid for them.
            raise StoreUnavailable("the claims ran out before they were charged")
        await self._charge([c for c in self._candidates if c.owned])
        return [candidate.decision() for candidate in self._candidates]

    def held(self) -> list[Entry]:
        """Every entry claimed so far and not given back."""
        return [entry for candidate in self._candidates for entry in candidate.owned]

    async def _claim_heads(self) -> None:
        claims = []
        for candidate in self._candidates:
            request = candidate.request
            wanted = submission_entry(
                request.submission,
                self._now,
                request.customer.retention,
                owner=candidate.owner,
                lease=self._lease_end,
                origin=request.origin,
            )
            claims.append(_Claim(candidate, wanted, wanted))
        await self._claim(claims)
        for claim in claims:
            candidate, entry = claim.candidate, claim.entry
            candidate.entry = entry
            if claim.held:
                candidate.owned.append(entry)
            elif entry.is_durable:
                candidate.replay = True
            else:
                candidate.busy = True

    async def _claim_items(self, batches: list[_Candidate]) -> None:
        claims = []
        for candidate in batches:
            batch = candidate.request.submission
            retention = candidate.request.customer.retention
            lease = self._lease_end
            items = item_entries(batch, candidate.entry.created_at, retention, owner=candidate.owner, lease=lease)
            claims += [_Claim(candidate, item, item) for item in items]
        await self._claim(claims)
        for claim in claims:
            candidate, entry = claim.candidate, claim.entry
            if claim.held:
                candidate.owned.append(entry)
            elif not entry.is_durable:
                candidate.busy = True
            elif entry.origin != candidate.request.submission.id:
                candidate.replayed.append(entry.id)
            # else an earlier attempt of this very batch came that far and died: paid for, and to be sent again,
            # because a worker that has finished with this attempt's message drops the earlier one.
        await self._step_back([candidate for candidate in batches if candidate.busy])

    async def _claim(self, claims: list[_Claim]) -> None:
        """Claim each entry or take it over from the dead; `entry` becomes what is stored now."""
        found = await self._store.claim([claim.wanted for claim in claims])
        dead = []
        for claim, entry in zip(claims, found, strict=True):
            claim.entry = entry
            claim.held = entry.owner == claim.candidate.owner and not entry.is_durable
            if not claim.held and not entry.is_durable and entry.lease <= self._now:
                dead.append(claim)
        if not dead:
            return
        taken = await self._store.apply([Change(Step.TAKE_OVER, _inherit(c.wanted, c.entry)) for c in dead])
        for claim, new in zip(dead, taken, strict=True):
            if new is not None:
                claim.entry, claim.held = new, True

    async def _charge(self, candidates: list[_Candidate]) -> None:
        """Charge per customer in one go, and one by one where that is too much."""
        charged = []
        for candidate in candidates:
            candidate.charge = self._charge_of(candidate)
            if candidate.charge is not None:
                charged.append(candidate)
        groups = defaultdict(list)
        for candidate in charged:
            groups[candidate.request.customer.cust_id].append(candidate)
        sums = [_sum(group) for group in groups.values()]
        answers = await self._store.charge(sums) if sums else []
        self.granted += [charge for charge, ok in zip(sums, answers, strict=True) if ok]
        for group, ok in zip(groups.values(), answers, strict=True):
            if not ok:
                await self._refuse([candidate for candidate in group if not await self._charge_alone(group, candidate)])

    async def _charge_alone(self, group: list[_Candidate], candidate: _Candidate) -> bool:
        if len(group) == 1 or candidate.charge is None:
            return False
        (ok,) = await self._store.charge([candidate.charge])
        if ok:
            self.granted.append(candidate.charge)
        return ok

    def _charge_of(self, candidate: _Candidate) -> Charge | None:
        customer = candidate.request.customer
        if customer.monthly_quota is None:
            return None
        count = sum(max(0, entry.tasks - entry.charged) for entry in candidate.owned)
        return Charge(customer.cust_id, self._month, count, customer.monthly_quota) if count else None

    async def _refuse(self, candidates: list[_Candidate]) -> None:
        """No claim stays behind a refusal; one that was paid for earlier is only let go."""
        entries = [entry for candidate in candidates for entry in candidate.owned]
        await self._store.apply([Change(Step.RELEASE if entry.charged else Step.FORGET, entry) for entry in entries])
        _disown(candidates)

    async def _step_back(self, candidates: list[_Candidate]) -> None:
        """Somebody else holds an item of these batches: let go of the rest, so that neither waits for the other."""
        entries = [entry for candidate in candidates for entry in candidate.owned]
        if entries:
            await self._store.apply([Change(Step.RELEASE, entry) for entry in entries])
        _disown(candidates)


def _inherit(wanted: Entry, dead: Entry) -> Entry:
    """A claim on what a dead owner left. The body may be another: what it decides is taken from `wanted`."""
    return msgspec.structs.replace(
        wanted,
        created_at=dead.created_at,
        retention=dead.retention,
        charged=dead.charged,
        generation=dead.generation,
    )


def _sum(group: list[_Candidate]) -> Charge:
    charges = [candidate.charge for candidate in group if candidate.charge is not None]
    return msgspec.structs.replace(charges[0], count=sum(charge.count for charge in charges))


def _disown(candidates: Iterable[_Candidate]) -> None:
    for candidate in candidates:
        candidate.owned.clear()
        candidate.charge = None
