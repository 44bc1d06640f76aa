"""Records when API keys were last used, in the background."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from ingest.domain.customers import key_id_of
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ports import Registry

INTERVAL: Final = 3600.0
"""Seconds between two records of one key by one process. If a record fails, the next one is made after them, too."""
_MAX_KEYS: Final = 50_000
_CHUNK: Final = 500
_LAST_WRITE: Final = 1.0
"""Seconds for the record in progress when the process stops."""

_log = structlog.get_logger(__name__)


class KeyUses:
    """Notes uses of keys and records them. No request waits for it or fails because of it.

    Args:
        registry: has the keys.
        clock: monotonic seconds.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._wall_clock = wall_clock
        self._noted: dict[bytes, float] = {}
        self._pending: list[str] = []
        self._writing: asyncio.Task[None] | None = None

    def note(self, key_hash: bytes) -> None:
        """Note that a valid key was used now. Call it in an event loop."""
        now = self._clock()
        if now - self._noted.get(key_hash, -INTERVAL) < INTERVAL:
            return
        if len(self._noted) >= _MAX_KEYS:
            self._noted.clear()
        self._noted[key_hash] = now
        self._pending.append(key_id_of(key_hash))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """End the record in progress, after a moment."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_LAST_WRITE)
            self._writing.cancel()

    async def _write(self) -> None:
        while self._pending:
            key_ids, self._pending = self._pending[:_CHUNK], self._pending[_CHUNK:]
            try:
                await self._registry.record_key_use(key_ids, int(self._wall_clock() * 1000))
            except StoreUnavailable as error:
                _log.warning("key_use_not_recorded", keys=len(key_ids), error=str(error))
