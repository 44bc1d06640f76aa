"""Takes back the charges of submissions that were left in doubt and never became tasks."""

import uuid
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from ingest.admission.calls import AdmissionStore
from ingest.admission.charging import month_of
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, UNLIMITED, Change, Charge, Doubt, Entry, Step

_CHUNK: Final = 100
"""Entries that are marked before their charges are taken back. A crash in between loses these refunds."""

_log = structlog.get_logger(__name__)


class DoubtRefunds:
    """Refunds doubts, each once, also if several processes do this at once.

    An entry is marked before its charge is taken back, so that a crash charges too much, never too little. The mark has
    a unique owner: if it is undecided, the next run finds out whether it took effect.

    Args:
        store: ledger and quotas.
    """

    def __init__(self, store: AdmissionStore) -> None:
        self._store = store
        self._undecided: list[tuple[Change, Charge]] = []
        self._pending: list[Charge] = []

    async def run(self, idle: int) -> int:
        """Refund doubts that have lasted for `idle` milliseconds; return how many. Raises StoreUnavailable."""
        refunded = await self._refund(await self._resolve())
        entries = [entry for entry in await self._store.in_doubt(idle) if entry.doubt is not Doubt.EVENTS]
        for start in range(0, len(entries), _CHUNK):
            refunded += await self._mark([_mark_of(entry) for entry in entries[start : start + _CHUNK]])
        return refunded

    async def _mark(self, marks: Sequence[tuple[Change, Charge]]) -> int:
        try:
            results = await self._store.apply([change for change, _ in marks])
        except StoreUnavailable:
            self._undecided += marks
            raise
        self._undecided += [mark for mark, result in zip(marks, results, strict=True) if result is UNDECIDED]
        return await self._refund([mark for mark, result in zip(marks, results, strict=True) if result])

    async def _resolve(self) -> list[tuple[Change, Charge]]:
        """Return what earlier runs have marked without an answer."""
        if not self._undecided:
            return []
        entries = await self._store.read([change.entry.id for change, _ in self._undecided])
        marks, self._undecided = self._undecided, []
        self._undecided += [mark for mark, entry in zip(marks, entries, strict=True) if entry is UNDECIDED]
        return [
            mark for mark, entry in zip(marks, entries, strict=True) if entry and entry.owner == mark[0].entry.owner
        ]

    async def _refund(self, marked: Sequence[tuple[Change, Charge]]) -> int:
        for change, charge in marked:
            _log.warning("doubt_refunded", cust_id=charge.cust_id, id=change.entry.id, tasks=charge.count)
        self._pending += [charge for _, charge in marked]
        while self._pending:
            await self._store.refund(self._pending[:1])
            del self._pending[0]
        return len(marked)


def _mark_of(entry: Entry) -> tuple[Change, Charge]:
    """Return the change that marks an entry as refunded, and the charge to take back."""
    owner = f"refund.{uuid.uuid4().hex}"
    marked = msgspec.structs.replace(entry, owner=owner, charged=0, doubt=Doubt.REFUNDED)
    month = entry.charged_month or month_of(entry.created_at)
    return Change(Step.REFUND, marked), Charge(entry.cust_id, month, entry.charged, UNLIMITED)
