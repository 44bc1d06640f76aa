"""Ledger changes that the store has not taken yet: they are retried until it does."""

import asyncio
import contextlib
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
_CLOSING_PAUSES: Final = (0.05, 0.5)
"""The same while the process stops."""

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

    async def close(self, seconds: float) -> None:
        """Retry what is pending for up to so many seconds, because the process stops."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.wait([self._retrying])
        backoff = Backoff(*_CLOSING_PAUSES)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._pending:
                    with contextlib.suppress(StoreUnavailable):
                        await self._apply(self._take())
                    if self._pending:
                        await asyncio.sleep(backoff.next())
        if self._pending:
            consequence = "keys stay claimed until their leases end; retries may be charged again"
            _log.error("ledger_changes_lost", changes=len(self._pending), consequence=consequence)

    async def _apply(self, changes: Sequence[Change]) -> None:
        try:
            results = await self._ledger.apply(changes)
        except (StoreUnavailable, asyncio.CancelledError):
            self._pending += changes
            raise
        self._pending += [change for change, result in zip(changes, results, strict=True) if result is UNDECIDED]

    def _take(self) -> list[Change]:
        changes, self._pending = self._pending, []
        return changes

    async def _retry(self) -> None:
        backoff = Backoff(*_PAUSES)
        while self._pending:
            await asyncio.sleep(backoff.next())
            changes = self._take()
            try:
                await self._apply(changes)
            except StoreUnavailable as error:
                _log.warning("ledger_changes_pending", error=str(error), changes=len(changes))
            else:
                _log.info("ledger_changes_retried", changes=len(changes), pending=len(self._pending))
