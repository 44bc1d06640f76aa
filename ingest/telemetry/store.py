"""Decorators that measure the store and admission."""

from collections.abc import Awaitable, Sequence
from time import perf_counter
from typing import Final, TypeVar

from ingest.admission import Admission, Decision, Request
from ingest.domain import metrics
from ingest.domain.customers import ApiKey, Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Change, Charge, Entry, Step, StoredEntry, Undecided
from ingest.domain.metrics import Meter
from ingest.domain.ports import Store
from ingest.domain.rates import PermitClaim

T = TypeVar("T")

_OPERATIONS: Final = {
    Step.QUEUE: "queue",
    Step.RELEASE: "release",
    Step.REFUND: "release",
    Step.REPUBLISH: "republish",
    Step.TAKE_OVER: "take_over",
    Step.FORGET: "forget",
}


class MeteredStore:
    """Measures a store."""

    def __init__(self, store: Store, meter: Meter) -> None:
        self._store = store
        self._meter = meter
        operations = ("claim", "read", "charge", "refund", "in_doubt", "settle", "permits", "registry", "ready")
        for operation in (*operations, *_OPERATIONS.values()):
            meter.add(metrics.STORE_ERRORS, 0, operation)

    async def claim(self, entries: Sequence[Entry]) -> Sequence[Entry | Undecided]:
        self._meter.observe(metrics.MICRO_BATCH_ITEMS, (len(entries),), "claim")
        return await self._timed_list("claim", self._store.claim(entries))

    async def read(self, ids: Sequence[str]) -> Sequence[Entry | Undecided | None]:
        return await self._timed_list("read", self._store.read(ids))

    async def inspect(self, ids: Sequence[str]) -> Sequence[StoredEntry | Undecided | None]:
        return await self._timed_list("read", self._store.inspect(ids))

    async def apply(self, changes: Sequence[Change]) -> Sequence[Entry | Undecided | None]:
        if not changes:
            return await self._store.apply(changes)
        operation = _OPERATIONS[changes[0].step]  # a list that mixes kinds, such as releases, counts as its first one
        if operation == "queue":
            self._meter.observe(metrics.MICRO_BATCH_ITEMS, (len(changes),), operation)
        return await self._timed_list(operation, self._store.apply(changes))

    async def in_doubt(self, idle: int) -> list[Entry]:
        return await self._timed("in_doubt", self._store.in_doubt(idle))

    async def accept(self, entries: Sequence[Entry]) -> Sequence[bool]:
        if not entries:
            return []
        self._meter.observe(metrics.MICRO_BATCH_ITEMS, (len(entries),), "settle")
        accepted = await self._timed("settle", self._store.accept(entries))
        if not all(accepted):
            self._meter.add(metrics.STORE_ERRORS, 1, "settle")
        return accepted

    async def charge(self, charges: Sequence[Charge]) -> Sequence[bool | Undecided]:
        self._meter.observe(metrics.MICRO_BATCH_ITEMS, (sum(charge.count for charge in charges),), "charge")
        return await self._timed_list("charge", self._store.charge(charges))

    async def refund(self, charges: Sequence[Charge]) -> None:
        await self._timed("refund", self._store.refund(charges))

    async def used(self, cust_id: str, month: str) -> int:
        return await self._timed("registry", self._store.used(cust_id, month))

    async def used_by(self, cust_ids: Sequence[str], month: str) -> list[int]:
        return await self._timed("registry", self._store.used_by(cust_ids, month))

    async def claim_permits(self, claims: Sequence[PermitClaim]) -> Sequence[int | Undecided]:
        return await self._timed_list("permits", self._store.claim_permits(claims))

    async def customer(self, cust_id: str) -> Customer | None:
        return await self._timed("registry", self._store.customer(cust_id))

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        return await self._timed("registry", self._store.customer_by_key(key_hash))

    async def customers(self, prefix: str = "", limit: int | None = None) -> list[Customer]:
        return await self._timed("registry", self._store.customers(prefix, limit))

    async def save_customer(self, customer: Customer) -> None:
        await self._timed("registry", self._store.save_customer(customer))

    async def producers(self) -> dict[str, float]:
        return await self._timed("registry", self._store.producers())

    async def add_producer(self, cust_id: str) -> None:
        await self._timed("registry", self._store.add_producer(cust_id))

    async def remove_producer(self, cust_id: str) -> None:
        await self._timed("registry", self._store.remove_producer(cust_id))

    async def keys(self, cust_id: str) -> list[ApiKey]:
        return await self._timed("registry", self._store.keys(cust_id))

    async def key_counts(self, cust_ids: Sequence[str]) -> list[int]:
        return await self._timed("registry", self._store.key_counts(cust_ids))

    async def record_key_use(self, key_ids: Sequence[str], used_at: int) -> None:
        await self._timed("registry", self._store.record_key_use(key_ids, used_at))

    async def save_key(self, key: ApiKey) -> None:
        await self._timed("registry", self._store.save_key(key))

    async def revoke_key(self, key_id: str) -> bool:
        return await self._timed("registry", self._store.revoke_key(key_id))

    async def ready(self) -> None:
        await self._timed("ready", self._store.ready())

    async def close(self) -> None:
        await self._store.close()

    async def _timed(self, operation: str, call: Awaitable[T]) -> T:
        start = perf_counter()
        try:
            return await call
        except StoreUnavailable:
            self._meter.add(metrics.STORE_ERRORS, 1, operation)
            raise
        finally:
            self._meter.observe(metrics.STORE_CALL_DURATION, (perf_counter() - start,), operation)

    async def _timed_list(self, operation: str, call: Awaitable[Sequence[T]]) -> Sequence[T]:
        results = await self._timed(operation, call)
        if any(result is UNDECIDED for result in results):
            self._meter.add(metrics.STORE_ERRORS, 1, operation)
        return results


class MeteredAdmission(Admission):
    """Measures an admission as a whole."""

    def __init__(self, store: Store, meter: Meter, lease: float) -> None:
        super().__init__(store, lease=lease)
        self._meter = meter

    async def admit(self, requests: Sequence[Request]) -> list[Decision]:
        start = perf_counter()
        try:
            return await super().admit(requests)
        finally:
            self._meter.observe(metrics.ADMISSION_DURATION, (perf_counter() - start,))
