"""What the console remembers: the latest state of the service, and how queues were in the last 15 minutes."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from ingest.console.failures import noted
from ingest.domain.overview import Overview, QueueState, by_class

INTERVAL: Final = 5.0
"""Seconds between two samples."""
SPAN: Final = 900.0
"""Seconds for which samples are kept."""


class History:
    """Collects the state repeatedly.

    Args:
        collect: returns the state now.
        interval: seconds between two samples. If a collection takes long, they are further apart.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        collect: Callable[[], Awaitable[Overview]],
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collect = collect
        self._interval = interval
        self._clock = clock
        self._samples: deque[tuple[float, dict[str, QueueState]]] = deque()
        self._is_collected = asyncio.Event()
        self.latest: Overview | None = None
        self.failure = ""
        """Why the state could not be collected the last time; empty if it could."""

    async def run(self) -> None:
        """Collect until it is cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(self._interval)

    async def sample(self) -> None:
        """Take one sample."""
        try:
            self.latest = await self._collect()
            self.failure = ""
        except Exception as error:  # noqa: BLE001 - an odd answer of a server must not end the console
            self.failure = noted("overview_not_collected", error)
        else:
            now = self._clock()
            self._samples.append((now, {queue.name: queue for queue in by_class(self.latest.broker.queues)}))
            while self._samples[0][0] < now - SPAN:
                self._samples.popleft()
        self._is_collected.set()

    async def wait(self) -> None:
        """Wait until the state was collected once, or could not be."""
        await self._is_collected.wait()

    def of(self, name: str, value: Callable[[QueueState], float | None]) -> list[tuple[float, float | None]]:
        """Return a value of a traffic class in each sample, oldest first, after its age in seconds.

        It is None where it is not known.
        """
        now = self._clock()
        return [
            (now - at, value(queue) if (queue := sample.get(name)) is not None else None)
            for at, sample in self._samples
            if now - at <= SPAN
        ]
