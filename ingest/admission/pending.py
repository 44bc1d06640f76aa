"""Ledger changes that the store has not taken yet: they are retried until it does."""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Change
from ingest.domain.ports import Ledger
from ingest.waiting import Backoff

_PAUSES: Final = (0.2, 1.0)
"""First and longest pause between two retries, in seconds. Until a change is applied, its entry looks claimed; the shim
waits longer than that for a contended key."""

_log = structlog.get_logger(__name__)


class PendingChanges:
    """Applies changes to the ledger; those that fail are kept, and retried in the background.

    Every change checks the generation of its entry, and one that gives a claim back also the owner, so a late retry of
    one that took effect changes nothing.

    Args:
        ledger: the ledger.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: list[Change] = []
        self._retrying: asyncio.Task[None] | None = None

    async def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes; keep those that the store cannot decide. Raises StoreUnavailable; then all of them are kept.

        An outage, or trouble with some of the entries, delays no other call.
        """
        try:
            await self._apply(changes)
        finally:
            if self._pending and (self._retrying is None or self._retrying.done()):
                self._retrying = asyncio.get_running_loop().create_task(self._retry())

    async def _apply(self, changes: Sequence[Change]) -> None:
        try:
            results = await self._ledger.apply(changes)
        except StoreUnavailable:
            self._pending += changes
            raise
        self._pending += [change for change, result in zip(changes, results, strict=True) if result is UNDECIDED]

    async def _retry(self) -> None:
        backoff = Backoff(*_PAUSES)
        while self._pending:
            await asyncio.sleep(backoff.next())
            changes, self._pending = self._pending, []
            try:
                await self._apply(changes)
            except StoreUnavailable as error:
                _log.warning("ledger_changes_pending", error=str(error), changes=len(changes))
            else:
                _log.info("ledger_changes_retried", changes=len(changes), pending=len(self._pending))
