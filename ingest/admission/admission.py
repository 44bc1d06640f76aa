"""Admits requests, and records what became of them."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from ingest.admission.attempt import Attempt
from ingest.admission.calls import AdmissionStore
from ingest.admission.decision import Decision, Request
from ingest.admission.pending import PendingChanges
from ingest.admission.progress import give_back
from ingest.admission.refunds import DoubtRefunds
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Doubt, Entry, Step

DEFAULT_LEASE: Final = 30.0
CLOSE_TIMEOUT: Final = 5.0
DOUBT: Final = 3600.0
"""Seconds for which a claim in doubt keeps its key from other bodies."""
REPUBLISH_AFTER: Final = 3600.0
"""Seconds for which a submission is queued before a repeat publishes it again; longer than any usual backlog. If a
backlog is older, each repeat adds at most one copy in this time, which the worker drops."""

_log = structlog.get_logger(__name__)


class Admission:
    """Admits lists of requests against one store.

    Args:
        store: ledger and quotas.
        lease: how long a claim lasts, in seconds. Callers finish or give up well before.
        doubt: how long a claim in doubt keeps its key from other bodies, in seconds. After half of it, `refund_doubts`
            takes its charge back, which ends the doubt.
        republish_after: how long a submission is queued before a repeat publishes it again, in seconds.
        clock: Unix time in seconds; it dates submissions and chooses the month of a charge.
        monotonic: monotonic time in seconds; it measures how long a claim has been held.
    """

    def __init__(
        self,
        store: AdmissionStore,
        *,
        lease: float = DEFAULT_LEASE,
        doubt: float = DOUBT,
        republish_after: float = REPUBLISH_AFTER,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._lease = lease
        self._doubt = doubt
        self._republish_after = republish_after
        self._clock = clock
        self._monotonic = monotonic
        self._pending = PendingChanges(store)
        self._refunds = DoubtRefunds(store)

    async def admit(self, requests: Sequence[Request]) -> list[Decision]:
        """Decide on every request, in order. Trouble of the store with one of them leaves only that one UNDECIDED.

        Raises:
            StoreUnavailable: nothing is decided. What was charged is refunded, if the store takes that. Claims made so
                far are given back, at the latest when the store is available again.
        """
        attempt = Attempt(
            self._store,
            requests,
            clock=self._clock,
            monotonic=self._monotonic,
            lease=self._lease,
            doubt=self._doubt,
            republish_after=self._republish_after,
        )
        try:
            decisions = await attempt.run()
        except StoreUnavailable:
            with contextlib.suppress(StoreUnavailable):
                await self._store.refund(attempt.granted)
            await self._apply_releases(attempt.releases)
            raise
        await self._apply_releases(attempt.releases)
        return decisions

    async def refund_doubts(self) -> int:
        """Refund submissions that were charged, left in doubt, and never became tasks; return how many entries.

        Their entries stay, marked as refunded. If the message arrives after all, the worker admits it again, with a
        charge. Raises StoreUnavailable.
        """
        return await self._refunds.run(int(self._doubt * 500))

    async def close(self, seconds: float = CLOSE_TIMEOUT) -> None:
        """Apply the changes that the store has not taken yet, for up to so many seconds. Call it last."""
        await self._pending.close(seconds)

    def holds(self, decision: Decision) -> bool:
        """Return whether the claims of an ADMITTED decision are still held. If not, the shim does not publish it.

        A process that was suspended for longer than a lease has lost its claims: another attempt may have taken them
        over and been charged for them.
        """
        return self._monotonic() < decision.held_until

    async def queued(self, decisions: Sequence[Decision]) -> None:
        """Record that the broker confirmed these submissions. Entries that are accepted already stay accepted.

        Entries that the store could not decide stay claimed until it can.

        Raises:
            StoreUnavailable: some entries may still be claimed. The record is made when the store is available again.
        """
        confirmed = [entry for decision in decisions for entry in (*decision.owned, *decision.republished)]
        await self._pending.apply([Change(Step.QUEUE, entry) for entry in confirmed])

    async def accepted(self, entries: Sequence[Entry]) -> Sequence[bool]:
        """Settle: record that all events of these entries are confirmed; return whether each of them is recorded.

        Raises StoreUnavailable if none is.
        """
        return await self._store.accept(entries)

    async def release(self, decisions: Sequence[Decision], *, refund: bool, doubt: Doubt = Doubt.OPEN) -> None:
        """Release the claims of failed publishes, so that a retry can continue at once.

        A release that fails is logged and retried; no error is raised.

        Args:
            decisions: ADMITTED ones, and replays that were to be published again.
            refund: also take the charge back. Only if the publish certainly had no effect; otherwise the entry
                remembers its charge, and a retry is free.
            doubt: what the entry remembers otherwise.
        """
        if not decisions:
            return
        if refund:
            try:
                # Refund first: after a crash in between, the entries say "not charged", which is correct.
                await self._store.refund([decision.charge for decision in decisions if decision.charge])
            except StoreUnavailable as error:
                _log.warning("refund_failed", error=str(error), submissions=len(decisions))
                refund = False
        if refund:
            changes = [give_back(entry) for decision in decisions for entry in decision.owned]
        else:
            changes = [
                Change(Step.RELEASE, _left_in_doubt(entry, decision.charge, doubt))
                for decision in decisions
                for entry in decision.owned
            ]
        changes += [give_back(entry) for decision in decisions for entry in decision.republished]
        await self._apply_releases(changes)

    async def _apply_releases(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        try:
            await self._pending.apply(changes)
        except StoreUnavailable as error:
            _log.warning("claim_release_failed", error=str(error), claims=len(changes))


def _left_in_doubt(entry: Entry, charge: Charge | None, doubt: Doubt) -> Entry:
    """Return the entry of a submission that may have been published, with what has been charged for it."""
    # An item that an earlier attempt was charged for keeps the month of that charge.
    is_charged_now = entry.charged < entry.tasks
    return msgspec.structs.replace(
        entry,
        charged=max(entry.charged, entry.tasks),
        charged_month=charge.month if charge is not None and is_charged_now else entry.charged_month,
        doubt=Doubt.EVENTS if entry.doubt is Doubt.EVENTS else doubt,
    )
