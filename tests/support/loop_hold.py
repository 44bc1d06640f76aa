"""How long the event loop is held: the longest time in which it can neither read nor answer."""

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Final, Self

from ingest.bootstrap import tune_garbage_collector

_PERIOD: Final = 0.005


class LoopHold:
    """Measures while its context is open. Garbage is collected as seldom as in the service.

    `longest` is in seconds of CPU time of the loop's thread between two runs of a task that wakes up every 5 ms. Other
    processes of the machine do not change it, unlike the time that passes, which is in `longest_wait`.

    Args:
        report: called with each of these times.
    """

    def __init__(self, report: Callable[[float], None] = lambda _: None) -> None:
        self._report = report
        self.longest = 0.0
        self.longest_wait = 0.0

    async def __aenter__(self) -> Self:
        self._thresholds = gc.get_threshold()
        gc.collect()
        tune_garbage_collector()
        self._ticking = asyncio.create_task(self._tick())
        await asyncio.sleep(2 * _PERIOD)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(2 * _PERIOD)  # what runs now is measured, too
        self._ticking.cancel()
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()

    async def _tick(self) -> None:
        used, now = time.thread_time(), time.monotonic()
        while True:
            await asyncio.sleep(_PERIOD)
            used_before, before = used, now
            used, now = time.thread_time(), time.monotonic()
            self.longest = max(self.longest, used - used_before)
            self._report(used - used_before)
            self.longest_wait = max(self.longest_wait, now - before - _PERIOD)
