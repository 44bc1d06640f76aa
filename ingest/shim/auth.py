"""Turns an API key into its customer, with a short cache."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from ingest.domain.customers import Customer, hash_api_key
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ports import Registry
from ingest.shim import problems
from ingest.shim.key_uses import KeyUses

FRESH: Final = 2.0
"""Seconds for which a revocation or another change of a customer may be unnoticed."""
STALE: Final = 300.0
"""Seconds for which a known key still counts while the store is unavailable."""
_MAX_KEYS: Final = 50_000
_MAX_CREDENTIALS: Final = 512
"""Bytes; ours have 41."""


class _CacheEntry(msgspec.Struct, frozen=True, gc=False):
    """`looked_up` is in monotonic seconds; `customer` is None for an unknown or revoked key."""

    looked_up: float
    customer: Customer | None


class Auth:
    """Authenticates requests. The cache holds hashes, never keys.

    The time that a look-up takes reveals nothing about a key: it depends on the SHA-256 of what was sent, whose
    prefix a guesser cannot choose, and the store compares the whole hash in constant time.

    Args:
        registry: keys and customers.
        deadline: the longest wait for a look-up, in seconds. While the store hangs, look-ups queue in its client.
        clock: monotonic seconds.
    """

    def __init__(
        self, registry: Registry, *, deadline: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._deadline = deadline
        self._clock = clock
        self._cache: dict[bytes, _CacheEntry] = {}
        self._lookups: dict[bytes, asyncio.Task[Customer | None]] = {}
        self._uses = KeyUses(registry, clock)

    async def customer(self, authorization: bytes | None) -> Customer:
        """Return the customer of an `Authorization` header.

        Raises:
            Problem: 401, 403 if the customer is disabled, or 503 if the store is unavailable and the key is not cached.
        """
        if authorization is None:
            raise problems.missing_key()
        scheme, _, credentials = authorization.partition(b" ")
        credentials = credentials.strip()
        if scheme.lower() != b"bearer" or not credentials or len(credentials) > _MAX_CREDENTIALS:
            raise problems.missing_key()
        key_hash = hash_api_key(credentials.decode("latin-1"))
        cached = self._cache.get(key_hash)
        if cached is not None and self._clock() - cached.looked_up < FRESH:
            customer = cached.customer
        else:
            customer = await self._shared_look_up(key_hash, cached)
        if customer is None:
            raise problems.unknown_key()
        if customer.disabled:
            raise problems.customer_disabled()
        return customer

    async def close(self) -> None:
        """Finish recording which keys were used."""
        await self._uses.close()

    async def _shared_look_up(self, key_hash: bytes, cached: _CacheEntry | None) -> Customer | None:
        """Look a key up; concurrent requests with the same key share one look-up."""
        task = self._lookups.get(key_hash)
        if task is None:
            task = asyncio.create_task(self._look_up(key_hash))
            self._lookups[key_hash] = task
            task.add_done_callback(lambda _: self._lookups.pop(key_hash, None))
        try:
            async with asyncio.timeout(self._deadline):
                return await asyncio.shield(task)
        except (StoreUnavailable, TimeoutError):
            if cached is not None and cached.customer is not None and self._clock() - cached.looked_up < STALE:
                return cached.customer
            raise problems.store_unavailable() from None

    async def _look_up(self, key_hash: bytes) -> Customer | None:
        customer = await self._registry.customer_by_key(key_hash)
        if len(self._cache) >= _MAX_KEYS:
            self._cache.clear()
        self._cache[key_hash] = _CacheEntry(self._clock(), customer)
        if customer is not None:
            self._uses.note(key_hash)
        return customer
