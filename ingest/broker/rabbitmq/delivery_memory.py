"""The memory that deliveries in progress use. The consumers of a process share it.

A prefetch limits messages, not bytes, and RabbitMQ has no other limit. With a limit for each consumer, what a worker
holds would grow with the number of its queues.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

SMALL: Final = 128 * 1024
"""The most bytes of a small body. Every bundle is small: 64 KiB of submissions with their ids and trace contexts."""
LIMIT: Final = 8 * 1024 * 1024
"""Bytes of small deliveries, and bytes of larger ones. The prefetch of usual submissions has 2 MB at most."""


class DeliveryMemory:
    """Gives memory to bodies in the order in which they begin to arrive, so that every consumer gets its turn.

    Small bodies and larger ones have a memory each, so the former never wait for the latter.

    Args:
        limit: bytes of each memory. A body that is larger gets its turn when nothing else is in it.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self._small = _Pool(limit)
        self._large = _Pool(limit)

    @property
    def taken(self) -> int:
        """Bytes of what has arrived or may arrive."""
        return self._small.taken + self._large.taken

    def reserve(self, size: int, resume: Callable[[], None]) -> "Reservation":
        """Reserve memory for a body of `size` bytes. If there is no room, it waits, and `resume` is called later."""
        return Reservation(self._small if size <= SMALL else self._large, size, resume)


class Reservation:
    """The memory of one delivery. Call `release` once it is finished, or does not arrive."""

    __slots__ = ("_pool", "is_waiting", "resume", "size")

    def __init__(self, pool: "_Pool", size: int, resume: Callable[[], None]) -> None:
        self._pool = pool
        self.size = size
        self.resume = resume
        self.is_waiting = pool.has_to_wait(size)
        if self.is_waiting:
            pool.waiting.append(self)
        else:
            pool.taken += size

    def arrived(self, size: int) -> None:
        """Count the whole delivery, even if there is no room: one read from the socket may contain many small ones."""
        if self.is_waiting:
            self._leave()
        self._pool.taken += size - self.size
        self.size = size

    def release(self) -> None:
        """Return everything. A second call has no effect."""
        if self.is_waiting:
            self._leave()
        self._pool.taken -= self.size
        self.size = 0
        self._pool.give_turns()

    def _leave(self) -> None:
        self.is_waiting = False
        self._pool.waiting.remove(self)
        self.size = 0


class _Pool:
    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.waiting: deque[Reservation] = deque()
        self.taken = 0

    def has_to_wait(self, size: int) -> bool:
        return bool(self.waiting) or not self._has_room(size)

    def give_turns(self) -> None:
        while self.waiting and self._has_room(self.waiting[0].size):
            reservation = self.waiting.popleft()
            reservation.is_waiting = False
            self.taken += reservation.size
            reservation.resume()

    def _has_room(self, size: int) -> bool:
        return self.taken + size <= self._limit or not self.taken
