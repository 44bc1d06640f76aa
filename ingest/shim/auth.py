"""API key to customer, with a short cache."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from ingest.domain.customers import Customer, hash_api_key
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ports import Registry
from ingest.shim.problems import bad_key, no_key, store_away

FRESH: Final = 2.0
"""Seconds for which a revocation or another change of a customer may go unseen."""
STALE: Final = 300.0
"""Seconds for which a known key still counts while the store is away."""
_MAX_KEYS: Final = 50_000


class Auth:
    """Looks API keys up. The cache holds hashes, never keys.

    How long a look-up takes tells nothing of a key: it goes by the SHA-256 of what was sent, of which a guesser cannot
    choose a prefix, and the store compares the whole hash in constant time.

    Args:
        registry: keys and customers.
        clock: monotonic seconds.
    """

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._known: dict[bytes, tuple[float, Customer | None]] = {}
        self._asking: dict[bytes, asyncio.Task[Customer | None]] = {}

    async def customer(self, authorization: bytes | None) -> Customer:
        """The customer of an `Authorization` header. Raises Problem: 401, or 503 where the store is away."""
        if authorization is None:
            raise no_key()
        scheme, _, credentials = authorization.partition(b" ")
        credentials = credentials.strip()
        if scheme.lower() != b"bearer" or not credentials or len(credentials) > 512:
            raise no_key()
        key_hash = hash_api_key(credentials.decode("latin-1"))
        known = self._known.get(key_hash)
        if known is not None and self._clock() - known[0] < FRESH:
            customer = known[1]
        else:
            customer = await self._ask(key_hash, known)
        if customer is None:
            raise bad_key()
        return customer

    async def _ask(self, key_hash: bytes, known: tuple[float, Customer | None] | None) -> Customer | None:
        """Concurrent requests with one key share one look-up."""
        task = self._asking.get(key_hash)
        if task is None:
            task = asyncio.create_task(self._look_up(key_hash))
            self._asking[key_hash] = task
            task.add_done_callback(lambda _: self._asking.pop(key_hash, None))
        try:
            return await asyncio.shield(task)
        except StoreUnavailable:
            if known is not None and known[1] is not None and self._clock() - known[0] < STALE:
                return known[1]
            raise store_away() from None

    async def _look_up(self, key_hash: bytes) -> Customer | None:
        customer = await self._registry.customer_by_key(key_hash)
        if len(self._known) >= _MAX_KEYS:
            self._known.clear()
        self._known[key_hash] = (self._clock(), customer)
        return customer
