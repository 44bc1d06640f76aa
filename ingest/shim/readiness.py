"""Whether the broker and the store can take a submission, asked at most once a second."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from ingest.domain.errors import Unavailable

_TIMEOUT: Final = 2.0
"""Seconds in which the broker and the store must answer."""
_FRESH: Final = 1.0
"""Seconds for which an answer is used again. Anyone may ask, and each question costs a write to the store."""


class Dependencies(msgspec.Struct, frozen=True):
    """The state of both: `ok`, `unavailable` or `does not answer`."""

    broker: str
    store: str

    @property
    def ready(self) -> bool:
        return self.broker == self.store == "ok"


class Readiness:
    """Asks the broker and the store whether they take submissions.

    Args:
        broker_ready: raises Unavailable unless the broker takes publishes.
        store_ready: raises Unavailable unless the store takes writes.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        broker_ready: Callable[[], Awaitable[None]],
        store_ready: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker_ready = broker_ready
        self._store_ready = store_ready
        self._clock = clock
        self._asked_at = 0.0
        self._asking: asyncio.Task[Dependencies] | None = None

    async def dependencies(self) -> Dependencies:
        """Return their state, which is at most a second old, or that of the question that is being asked."""
        now = self._clock()
        if self._asking is None or (self._asking.done() and now - self._asked_at >= _FRESH):
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Dependencies:
        broker, store = await asyncio.gather(_state(self._broker_ready), _state(self._store_ready))
        return Dependencies(broker, store)


async def _state(ready: Callable[[], Awaitable[None]]) -> str:
    try:
        async with asyncio.timeout(_TIMEOUT):
            await ready()
    except Unavailable:
        return "unavailable"
    except TimeoutError:
        return "does not answer"
    return "ok"
