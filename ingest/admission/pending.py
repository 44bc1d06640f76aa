"""Ledger changes that the store has not taken yet: they are retried until it does."""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change
from ingest.domain.ports import Ledger
from ingest.waiting import Backoff

_PAUSES: Final = (0.2, 5.0)
"""First and longest pause between two retries, in seconds."""

_log = structlog.get_logger(__name__)


class PendingChanges:
    """Applies changes to the ledger; those that fail are kept, and retried in the background.

    Every change checks the generation of its entry, and a deletion its owner, so a late retry of one that took effect
    changes nothing.

    Args:
        ledger: the ledger.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: list[Change] = []
        self._lock = asyncio.Lock()
        self._failures = 0
        self._retrying: asyncio.Task[None] | None = None

    async def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes, after those that are pending. Raises StoreUnavailable; then all of them are pending."""
        self._pending += changes
        await self.flush()

    async def flush(self) -> None:
        """Apply what is pending, if anything is. Raises StoreUnavailable."""
        if not self._pending:
            return
        # Concurrent callers wait: until the changes are applied, the entries look claimed.
        failures = self._failures
        async with self._lock:
            if self._failures != failures:
                raise StoreUnavailable("earlier changes are pending")  # an outage costs one call, not one per caller
            changes = list(self._pending)
            try:
                if changes:
                    await self._ledger.apply(changes)
            except StoreUnavailable:
                self._failures += 1
                self._retry_later()
                raise
            del self._pending[: len(changes)]

    def _retry_later(self) -> None:
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.get_running_loop().create_task(self._retry())

    async def _retry(self) -> None:
        backoff = Backoff(*_PAUSES)
        while self._pending:
            await asyncio.sleep(backoff.next())
            count = len(self._pending)
            try:
                await self.flush()
            except StoreUnavailable as error:
                _log.warning("ledger_changes_pending", error=str(error), changes=count)
            else:
                _log.info("ledger_changes_applied", changes=count)
