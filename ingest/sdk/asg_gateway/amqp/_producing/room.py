"""Who waits for whom: bounds what is in flight, also of one key, and what starts at once."""

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
        """Wait for room. A caller that gets it must call `leave`."""
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
        """Wait until the key is not in use. A caller that gets it must call `leave`."""
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


class Gate:
    """Lets at most `count` calls pass in each iteration of the event loop.

    aiormq has a queue for 10 messages. If it is full, all calls wait for a lock, and only one per iteration gets it.
    """

    def __init__(self, count: int) -> None:
        self._count = self._left = count
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_open_again_soon = False

    async def enter(self) -> None:
        """Wait for an iteration with room."""
        loop = asyncio.get_running_loop()
        if not self._is_open_again_soon:
            self._is_open_again_soon = True
            loop.call_soon(self._open_again, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _open_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._count
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._left -= 1
        self._is_open_again_soon = self._left < self._count
        if self._is_open_again_soon:
            loop.call_soon(self._open_again, loop)
