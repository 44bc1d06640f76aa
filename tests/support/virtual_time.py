"""Time that passes only while something waits for it."""

import asyncio


class VirtualTime:
    """`clock` and `wait` for code that takes both; a wait that nothing ends moves the clock at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def clock(self) -> float:
        """Seconds since the beginning of the test."""
        return self.now

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        """As `ingest.waiting.wait_for_event`."""
        if seconds is None:
            return await event.wait()
        for _ in range(10):  # let the other tasks run first
            await asyncio.sleep(0)
            if event.is_set():
                return True
        self.waits.append(seconds)
        self.now += seconds
        return False
