"""Who waits for whom: bounds what is in flight, and lets only one message of a key be in flight."""

import asyncio
from collections import deque


class Room:
    """Room for `messages` with `size` bytes together. Calls that find none wait in the order of their arrival.

    A message above `size` enters when nothing else is in flight.
    """

    def __init__(self, messages: int, size: int) -> None:
        self._free = messages
        self._free_bytes = size
        self._total = messages
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def in_use(self) -> int:
        """The number of messages in flight."""
        return self._total - self._free

    async def enter(self, size: int) -> None:
        """Wait for room. Whoever gets it must call `leave`."""
        if not self._waiting and self._take(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(size)  # cancelled after the turn had come
            else:
                turn.cancel()
                self._admit()  # a smaller message behind it may fit
            raise

    def leave(self, size: int) -> None:
        """Give the room of a message back."""
        self._free += 1
        self._free_bytes += size
        self._admit()

    def _take(self, size: int) -> bool:
        if not self._free or (size > self._free_bytes and self.in_use):
            return False
        self._free -= 1
        self._free_bytes -= size
        return True

    def _admit(self) -> None:
        while self._waiting:
            turn, size = self._waiting[0]
            if not turn.done():
                if not self._take(size):
                    return
                turn.set_result(None)
            self._waiting.popleft()


class Turns:
    """Turns per key: calls with the same key go one after another, in the order of their arrival."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]] | None] = {}
        """The calls that wait for a key which is in use; None if there are none."""

    async def enter(self, key: str) -> None:
        """Wait until the key is not in use. Whoever gets it must call `leave`."""
        if key not in self._waiting:
            self._waiting[key] = None
            return
        waiting = self._waiting[key]
        if waiting is None:
            self._waiting[key] = waiting = deque()
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(key)  # cancelled after the turn had come
            turn.cancel()
            raise

    def leave(self, key: str) -> None:
        """Give the key to the next call that waits for it."""
        waiting = self._waiting[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[key]
