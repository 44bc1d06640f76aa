"""The customers of submissions: cached, and looked up so that trouble with one record affects only its customer."""

from collections.abc import Callable
from typing import Final

from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Undecided
from ingest.domain.ports import Registry

CUSTOMER_CACHE: Final = 2.0
"""Seconds for which a customer's settings are cached."""
_MAX_CUSTOMERS: Final = 10_000
_OUTAGE: Final = 2
"""Failed look-ups, and none that succeeded, after which an attempt makes no more of them."""


class CustomerCache:
    """Customers of a process. `unreadable` are those whose latest look-up failed.

    Args:
        registry: looks customers up.
        clock: returns monotonic seconds.
    """

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock
        self._customers: dict[str, tuple[float, Customer | None]] = {}
        self.unreadable: set[str] = set()

    def cached(self, cust_id: str) -> Customer | Undecided | None:
        """Return a customer from the cache, None if it does not exist, or UNDECIDED if the cache does not know."""
        cached = self._customers.get(cust_id)
        return cached[1] if cached is not None and cached[0] > self._clock() else UNDECIDED

    async def look_up(self, cust_id: str) -> Customer | None:
        """Look a customer up in the registry; None if it does not exist. Raises StoreUnavailable."""
        now = self._clock()
        if len(self._customers) + len(self.unreadable) >= _MAX_CUSTOMERS:
            self._customers.clear()
            self.unreadable.clear()
        try:
            customer = await self._registry.customer(cust_id)
        except StoreUnavailable:
            self.unreadable.add(cust_id)
            raise
        self.unreadable.discard(cust_id)
        self._customers[cust_id] = (now + CUSTOMER_CACHE, customer)
        return customer


class CustomerLookups:
    """The look-ups of one attempt. `failure` is the error of the latest one that failed.

    Each customer is looked up at most once, and in an outage only the first few are.
    """

    def __init__(self, cache: CustomerCache) -> None:
        self._cache = cache
        self._failed: set[str] = set()
        self._answered = False
        self.failure: StoreUnavailable | None = None

    async def customer(self, cust_id: str) -> Customer | Undecided | None:
        """Return a customer, None if it does not exist, or UNDECIDED if the store cannot say."""
        customer = self._cache.cached(cust_id)
        if customer is not UNDECIDED:
            return customer
        if cust_id in self._failed or (len(self._failed) >= _OUTAGE and not self._answered):
            return UNDECIDED
        try:
            customer = await self._cache.look_up(cust_id)
        except StoreUnavailable as error:
            # Without its traceback, whose frames keep the deliveries of the attempt in memory.
            self.failure = error.with_traceback(None)
            self._failed.add(cust_id)
            return UNDECIDED
        self._answered = True
        return customer
