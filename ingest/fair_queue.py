"""A queue in which a customer with many items delays only itself.

Items wait per customer, and customers are served in turn. If the queue is full, the customer with the most waiting
items loses one.
"""

from collections import deque
from collections.abc import KeysView
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """The queue is full, and no customer has more items in it than this one."""


class FairQueue(Generic[T]):
    """A bounded queue that serves customers in turn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._queues: dict[str, deque[T]] = {}
        """Only customers with waiting items, the one to serve next first."""

    def __len__(self) -> int:
        return self._size

    def put(self, customer: str, item: T) -> T | None:
        """Add an item; return the item that had to leave for it, if the queue was full.

        Raises:
            QueueFull: the queue is full, and no customer has more items in it than this one.
        """
        displaced = None
        if self._size >= self._limit:
            longest = max(self._queues.values(), key=len)
            if len(longest) <= len(self._queues.get(customer, ())) + 1:
                raise QueueFull
            displaced = longest.pop()
            self._size -= 1
        self._queues.setdefault(customer, deque()).append(item)
        self._size += 1
        return displaced

    def take(self, count: int) -> list[T]:
        """Remove and return up to `count` items, one of each customer in turn."""
        taken: list[T] = []
        while self._queues and len(taken) < count:
            customer = next(iter(self._queues))
            queue = self._queues.pop(customer)
            if self._queues:
                taken.append(queue.popleft())
            else:  # a single customer, which is usual: no turns
                taken += [queue.popleft() for _ in range(min(count - len(taken), len(queue)))]
            if queue:
                self._queues[customer] = queue
        self._size -= len(taken)
        return taken

    def customers(self) -> KeysView[str]:
        """Return the customers with waiting items, the one to serve next first."""
        return self._queues.keys()

    def take_from(self, customer: str) -> T:
        """Remove and return the customer's oldest item. Raises KeyError if it has none."""
        queue = self._queues.pop(customer)
        item = queue.popleft()
        if queue:
            self._queues[customer] = queue
        self._size -= 1
        return item
