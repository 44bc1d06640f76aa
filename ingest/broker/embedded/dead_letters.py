"""`ingest.dead` of the embedded queue. Reading changes nothing, and works beside a running `ingest dev`."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self, TextIO

from ingest.broker.embedded import schema
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery
from ingest.domain.topology import INGEST_DEAD
from ingest.sqlite.file import SqliteFile

_CHUNK: Final = 100
_MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of bodies from which on a list is complete."""


class EmbeddedDeadLetters:
    """`domain.ports.DeadLetterQueue`.

    `read_only` opens it to look only; `EmbeddedBroker.dead_letters` to clear, too.
    """

    def __init__(self, file: SqliteFile, lock: TextIO | None = None, *, keep_open: bool = False) -> None:
        self._file = file
        self._lock = lock
        self._keep_open = keep_open

    @classmethod
    async def read_only(cls, path: Path) -> Self:
        """Open the file to read it. Raises ConfigurationError, BrokerUnavailable."""
        file = SqliteFile(path, schema.MIGRATIONS, BrokerUnavailable)
        try:
            await file.connect_to_read()
        except BaseException:
            await file.close()
            raise
        return cls(file)

    async def count(self) -> int:
        ready, unacked = (await self.depths())[INGEST_DEAD]
        return ready + unacked

    async def size(self) -> int:
        return await self._file.read(partial(schema.size, queue=INGEST_DEAD))

    async def depths(self) -> dict[str, tuple[int, int]]:
        """Queue to (ready, unacknowledged). Raises BrokerUnavailable."""
        return await self._file.read(schema.depths)

    async def oldest(self) -> dict[str, int]:
        """Queue to the Unix time of its first ready message, if it is known. Raises BrokerUnavailable."""
        return await self._file.read(schema.oldest)

    async def browse(self) -> AsyncIterator[list[Delivery]]:
        remaining = await self.count()
        last = 0
        while remaining > 0:
            limit = min(remaining, _CHUNK)
            rows = await self._file.read(
                partial(schema.read_after, queue=INGEST_DEAD, last=last, limit=limit, most=_MAX_BYTES)
            )
            if not rows:
                return
            last = rows[-1][0]
            remaining -= len(rows)
            yield [schema.delivery(INGEST_DEAD, *row) for row in rows]

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        ids = [delivery.token for delivery in deliveries]
        await self._file.change(lambda db: schema.delete(db, ids))

    async def close(self) -> None:
        if self._keep_open:
            return
        await self._file.close()
        if self._lock is not None:
            self._lock.close()
