"""Deficit round robin: queues share what is taken in proportion to their weights, whatever their items cost.

The algorithm is from M. Shreedhar and G. Varghese, "Efficient Fair Queueing using Deficit Round Robin" (1996). Here, a
queue may overdraw its deficit by one item and pays in its next turns, so that it need not save for an expensive one.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

QUANTUM: Final = 32
"""What a queue of weight 1 may take in one turn."""


class DeficitRoundRobin(Generic[T]):
    """Items that wait in queues. A queue with many or expensive items does not delay the others.

    Args:
        weight: returns the weight of a queue, above 0.
    """

    def __init__(self, weight: Callable[[str], float] = lambda _: 1.0) -> None:
        self._weight = weight
        self._waiting: dict[str, deque[tuple[int, T]]] = {}
        """Costs and items by queue, of those queues that have items; the queue whose turn it is first."""
        self._deficits: defaultdict[str, float] = defaultdict(float)
        """What each queue may still take in its turn; below 0 what it has overdrawn."""
        self._turns = 0
        """How many turns began."""
        self._left: dict[str, int] = {}
        """Queues without items that have overdrawn, and the number of turns when they became empty."""
        self.cost = 0
        """What all waiting items cost together."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def count(self, queue: str) -> int:
        """Return how many items wait in a queue."""
        return len(self._waiting.get(queue, ()))

    def put(self, queue: str, item: T, cost: int) -> None:
        """Add an item at the end of its queue; `cost` is at least 1."""
        if queue in self._left:
            # It would have had a turn in each round meanwhile.
            rounds = (self._turns - self._left.pop(queue)) / len(self._waiting)
            self._deficits[queue] = min(0.0, self._deficits[queue] + rounds * QUANTUM * self._weight(queue))
        self._waiting.setdefault(queue, deque()).append((cost, item))
        self.cost += cost

    def take(self, most: int) -> list[T]:
        """Remove and return items that cost at most `most` together, or a single item that costs more."""
        taken: list[T] = []
        room = most
        while self._waiting and room > 0:
            queue, items = next(iter(self._waiting.items()))
            deficit = self._deficits[queue]
            if deficit <= 0:
                deficit += QUANTUM * self._weight(queue)
                self._turns += 1
            while items and deficit > 0 and (items[0][0] <= room or not taken):
                cost, item = items.popleft()
                taken.append(item)
                deficit -= cost
                room -= cost
                self.cost -= cost
            self._deficits[queue] = deficit
            if not items:
                self._remove(queue)
            elif deficit <= 0:
                self._waiting[queue] = self._waiting.pop(queue)
            else:
                break  # its next item does not fit; its turn goes on with the next call
        return taken

    def discard(self, queue: str, is_needed: Callable[[T], bool]) -> None:
        """Remove the items of a queue for which `is_needed` returns False."""
        if queue in self._waiting:
            items = self._waiting[queue]
            needed = self._waiting[queue] = deque(entry for entry in items if is_needed(entry[1]))
            self.cost -= sum(cost for cost, _ in items) - sum(cost for cost, _ in needed)
            if not needed:
                self._remove(queue)

    def _remove(self, queue: str) -> None:
        """Remove a queue without items. What it has overdrawn is forgotten when no queue waits."""
        del self._waiting[queue]
        if not self._waiting:
            self._deficits.clear()
            self._left.clear()
        elif self._deficits[queue] < 0:
            self._left[queue] = self._turns
        else:
            del self._deficits[queue]
