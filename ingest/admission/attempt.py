"""One admission of a list of requests: claim the submissions, then the keyed items of batches, then charge."""

import uuid
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ingest.admission.calls import AdmissionStore, StoreCalls
from ingest.admission.charging import Charging, month_of
from ingest.admission.decision import Decision, Request
from ingest.admission.progress import RequestProgress, give_back
from ingest.admission.republishing import Republishing
from ingest.domain.errors import StoreUnavailable
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import (
    UNDECIDED,
    UNFINISHED,
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
        republish_after: float,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._held_until = monotonic() + lease
        self._lease = int(lease * 1000)
        self._doubt = int(doubt * 1000)
        self._now = now = int(clock() * 1000)
        self._calls = StoreCalls()
        self._charging = Charging(store, self._calls, month_of(now))
        self._republishing = Republishing(
            store, self._calls, now=now, lease=self._lease, after=int(republish_after * 1000)
        )
        # One owner per request, not per attempt: only one of two equal ids in a list may win.
        owner = uuid.uuid4().hex
        self._pending = [RequestProgress(request, f"{owner}.{i}") for i, request in enumerate(requests)]
        self._items_of_others: list[tuple[RequestProgress, Entry, bytes]] = []
        self.releases: list[Change] = []
        """Changes that give back claims which no decision holds. The caller applies them, also if `run` raises."""

    @property
    def granted(self) -> Sequence[Charge]:
        """What the store has charged so far."""
        return self._charging.granted

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
        self._give_up(await self._charging.charge(self._pending))
        self._check_lease()
        # Only now, so that a batch which exceeds the quota takes nothing that a repeat of its item needs.
        await self._republishing.take_items(self._items_of_others)
        await self._republishing.take_replays(self._pending)
        if self._calls.failure is not None and all(pending.undecided for pending in self._pending):
            raise self._calls.failure

    def _check_lease(self) -> None:
        """Raise StoreUnavailable if the process was suspended until another attempt may have taken the claims over."""
        if self._monotonic() >= self._held_until:
            raise StoreUnavailable("the claims expired before they were charged")

    async def _claim_submissions(self) -> None:
        wanted = [
            submission_entry(
                pending.request.submission,
                self._created_at(pending.request),
                pending.request.customer.retention,
                owner=pending.owner,
                lease=self._lease,
                origin=pending.request.origin,
                request_id=pending.request.request_id,
                trace_id=pending.request.trace.trace_id if pending.request.trace else "",
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

    async def _claim_items(self, batches: list[RequestProgress]) -> None:
        claimants: list[RequestProgress] = []
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
                self._items_of_others.append((pending, entry, item.fingerprint))
            # Otherwise, if it is not held, an earlier attempt of this batch made it durable and crashed. It is charged
            # already. It is published again, because the worker that finishes this attempt's message drops the earlier
            # attempt's message, which may be the only one with the item.
            if entry.created_at != pending.entry.created_at:
                pending.item_created_at[entry.id] = entry.created_at
        # Neither of two batches that share an item waits for the other. A batch is never admitted in part.
        self._give_up(pending for pending in batches if pending.contended or pending.undecided)

    async def _claim(
        self, claimants: Sequence[RequestProgress], wanted: Sequence[Entry]
    ) -> tuple[list[Entry | Undecided], list[bool]]:
        """Claim each entry for its claimant, and take over claims whose lease has ended.

        Returns what is stored now, and for each entry whether the claimant holds it.
        """
        stored = await self._calls.results(self._store.claim(wanted), len(wanted))
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
            results = await self._calls.results(self._store.apply(list(takeovers.values())), len(takeovers))
            for (index, change), result in zip(takeovers.items(), results, strict=True):
                expired, own = stored[index], claimants[index]
                if result is UNDECIDED:
                    stored[index] = UNDECIDED
                    taken_over = msgspec.structs.replace(change.entry, generation=change.entry.generation + 1)
                    self.releases.append(give_back(taken_over))
                elif result is not None:
                    # Not for an item alone: the rest of its batch would pass the quota with it.
                    if expired and _may_be_published(expired, result) and result.id == own.request.submission.id:
                        own.may_be_published = True
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

    def _give_up(self, decisions: Iterable[RequestProgress]) -> None:
        for pending in decisions:
            self.releases += pending.give_up()


def _may_be_published(expired: Entry, wanted: Entry) -> bool:
    """Return whether an earlier attempt at the same body may have published it: it crashed, or left it in doubt."""
    is_in_doubt = bool(expired.lease) or expired.doubt in (Doubt.OPEN, Doubt.EVENTS)
    return is_in_doubt and expired.fingerprint == wanted.fingerprint


def _was_accepted_with_another_body(stored: Entry, wanted: Entry) -> bool:
    return stored.phase is Phase.ACCEPTED and stored.fingerprint != wanted.fingerprint


def _inherit(wanted: Entry, expired: Entry) -> Entry:
    """Return the claim that takes over an expired one. The body may differ, so its fields come from `wanted`."""
    doubt, same_body = expired.doubt, wanted.fingerprint == expired.fingerprint
    if expired.lease and not doubt and same_body:
        doubt = Doubt.OPEN  # its owner may have crashed after the publish; so it is in doubt if it is given back
    elif doubt in (Doubt.OPEN, Doubt.EVENTS) and not same_body:
        doubt = Doubt.NONE  # that about the other body has ended, and this one was not published
    return msgspec.structs.replace(
        wanted,
        created_at=expired.created_at,
        retention=expired.retention,
        charged=expired.charged,
        charged_month=expired.charged_month,
        doubt=doubt,
        # A worker that admits the shim's message again does not know the request.
        request_id=wanted.request_id or (expired.request_id if same_body else ""),
        trace_id=wanted.trace_id or (expired.trace_id if same_body else ""),
        generation=expired.generation,
    )
