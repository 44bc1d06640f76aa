"""Customers in a SQLite store that can be unavailable, as the console reads them."""

import asyncio
from pathlib import Path
from typing import Any, Self

from ingest.domain.customers import ApiKey, Customer, hash_api_key, key_id_of, new_api_key
from ingest.domain.ledger import Charge
from ingest.domain.ports import Store
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock
from tests.support.find_harness import OpenStore


class CustomerHarness:
    """A store. `opened` counts how often it was opened to read; `failure` is raised instead; `gate` delays it."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.opened = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    @classmethod
    async def open(cls, directory: Path) -> Self:
        clock = Clock()
        return cls(await SqliteStore.open(directory / "s.db", clock=clock), clock)

    async def open_to_read(self) -> Store:
        self.opened += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return OpenStore(self.store)

    async def add(self, cust_id: str, **fields: Any) -> None:
        await self.store.save_customer(Customer(cust_id=cust_id, **fields))

    async def charge(self, cust_id: str, count: int, month: str = "2026-03") -> None:
        assert await self.store.charge([Charge(cust_id, month, count, count)]) == [True]

    async def add_key(self, cust_id: str, **fields: Any) -> ApiKey:
        hashed = hash_api_key(new_api_key())
        key = ApiKey(key_id=key_id_of(hashed), cust_id=cust_id, key_hash=hashed, **{"created_at": 5} | fields)
        await self.store.save_key(key)
        return key
