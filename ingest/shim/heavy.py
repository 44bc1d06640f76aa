"""Finds the customers that take more than their share now, so that others need not wait for them.

Amazon SQS does the same in its fair queues: a tenant with a large share of what is in progress is a noisy neighbour.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final

import structlog

from ingest.domain import metrics
from ingest.domain.metrics import NO_METER, Meter

WINDOW: Final = 5.0
"""Seconds of one window. The tasks of the current and of the previous one count, the latter less and less."""
FLOOR: Final = 2000
"""The default floor: for example 400 single tasks a second."""
_SHARE: Final = 0.1
"""A customer is heavy above this share of all tasks, or above twice the mean of all customers."""
_RELEASE: Final = 0.5
"""A heavy customer stays heavy until its tasks are below this part of what makes a customer heavy."""
_MAX_CUSTOMERS: Final = 2000
"""Customers that are counted; with more, those with the fewest tasks are forgotten."""

_log = structlog.get_logger(__name__)


class HeavyCustomers:
    """Counts the tasks of each customer in this process, and says which customers are heavy.

    Args:
        meter: records how many customers are heavy.
        clock: monotonic seconds.
        floor: tasks within the window up to which a customer is never heavy.
    """

    def __init__(
        self, meter: Meter = NO_METER, clock: Callable[[], float] = time.monotonic, floor: int = FLOOR
    ) -> None:
        self._meter = meter
        self._floor = floor
        self._clock = clock
        self._started = clock()
        self._current: defaultdict[str, float] = defaultdict(float)
        self._previous: defaultdict[str, float] = defaultdict(float)
        self._total = 0.0
        self._previous_total = 0.0
        self._heavy: set[str] = set()
        meter.set(metrics.HEAVY_CUSTOMERS, 0)

    def add(self, cust_id: str, tasks: int, weight: float = 1.0) -> bool:
        """Add tasks, divided by the customer's weight, to its count; return whether it is heavy now."""
        now = self._clock()
        if now >= self._started + WINDOW:
            self._turn(now)
        self._current[cust_id] += tasks / weight
        self._total += tasks
        if len(self._current) > _MAX_CUSTOMERS:
            self._forget_the_smallest()
        if cust_id not in self._heavy and self._current[cust_id] + self._previous.get(cust_id, 0.0) <= self._floor:
            return False  # the usual case: it cannot be heavy
        return self._judge(cust_id, now)

    def _judge(self, cust_id: str, now: float) -> bool:
        # The part of the previous window that is not more than WINDOW ago, as if its tasks were spread evenly.
        rest = max(0.0, 1.0 - (now - self._started) / WINDOW)
        own = self._current.get(cust_id, 0.0) + rest * self._previous.get(cust_id, 0.0)
        total = self._total + rest * self._previous_total
        customers = max(1, len(self._current), len(self._previous))
        limit = max(self._floor, total * min(_SHARE, 2 / customers))
        if cust_id in self._heavy:
            if own < limit * _RELEASE:
                self._heavy.discard(cust_id)
                self._log_change("customer_no_longer_heavy", cust_id, own, total)
        elif own > limit:
            self._heavy.add(cust_id)
            self._log_change("customer_heavy", cust_id, own, total)
        return cust_id in self._heavy

    def _turn(self, now: float) -> None:
        """Begin the next window, and release heavy customers that have become quiet."""
        idle = now >= self._started + 2 * WINDOW
        self._previous, self._previous_total = (defaultdict(float), 0.0) if idle else (self._current, self._total)
        self._current, self._total = defaultdict(float), 0.0
        self._started = now if idle else self._started + WINDOW
        for cust_id in sorted(self._heavy):
            self._judge(cust_id, now)

    def _forget_the_smallest(self) -> None:
        """Subtract the median from every count and keep what is above 0.

        So at least half of the customers are forgotten, and a count is too low by at most a thousandth of the sum of
        all counts for each customer that is kept (the algorithm of Misra and Gries).
        """
        median = sorted(self._current.values())[len(self._current) // 2]
        rest = {name: count - median for name, count in self._current.items() if count > median}
        self._current = defaultdict(float, rest)

    def _log_change(self, event: str, cust_id: str, own: float, total: float) -> None:
        self._meter.set(metrics.HEAVY_CUSTOMERS, len(self._heavy))
        _log.info(event, cust_id=cust_id, tasks=round(own), share=round(own / max(total, 1.0), 2), seconds=WINDOW)
