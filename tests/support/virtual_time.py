"""Time that passes only while a task waits for it."""

import asyncio


class VirtualTime:
    """`clock` and `wait` for code that takes both. A wait whose event is not set moves the clock at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def clock(self) -> float:
        """Return the seconds since the start of the test."""
        return self.now

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait as `ingest.waiting.wait_for_event` does, in virtual time."""
        if seconds is None:
            return await event.wait()
        for _ in range(10):  # let the other tasks run first
            await asyncio.sleep(0)
            if event.is_set():
                return True
        self.waits.append(seconds)
        self.now += seconds
        return False
