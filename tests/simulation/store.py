"""A simulated store: one shared state, reached by each process over a network with faults."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from ingest.domain.customers import ApiKey, Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Change, Charge, Doubt, Entry, StoredEntry, Undecided
from ingest.domain.rates import PermitClaim
from tests.simulation.customers import WITH_QUEUES
from tests.simulation.machines import Fate, Process, Server
from tests.simulation.store_state import StoreState

T = TypeVar("T")

_TIMEOUT: Final = 1.0
"""Seconds after which a caller gives up."""
_LATEST: Final = 2.0
"""Seconds after which a late call has taken effect, counted from the time at which its caller gave up."""
_CLOSE_TIMEOUT: Final = 3.0


class SimulatedStore:
    """`domain.ports.Store` for one process."""

    def __init__(self, state: StoreState, process: Process) -> None:
        self._state = state
        self._process = process
        self._life = process.life
        self._network = process.network
        self._taking_back: set[asyncio.Task[None]] = set()

    async def claim(self, entries: Sequence[Entry]) -> list[Entry | Undecided]:
        return await self._call(entries, self._state.claim)

    async def read(self, ids: Sequence[str]) -> list[Entry | Undecided | None]:
        return await self._call(ids, self._state.stored)

    async def inspect(self, ids: Sequence[str]) -> list[StoredEntry | Undecided | None]:
        raise NotImplementedError

    async def apply(self, changes: Sequence[Change]) -> list[Entry | Undecided | None]:
        for entry in [change.entry for change in changes if change.entry.doubt is Doubt.REFUNDED]:
            self._process.charged[entry.cust_id] += entry.tasks  # until its refund
        return await self._call(changes, self._state.apply)

    async def in_doubt(self, idle: int) -> list[Entry]:
        (entries,) = await self._call([idle], self._state.in_doubt)
        return entries or []

    async def accept(self, entries: Sequence[Entry]) -> list[bool]:
        return [bool(accepted) for accepted in await self._call(entries, self._state.accept)]

    async def charge(self, charges: Sequence[Charge]) -> list[bool | Undecided]:
        granted: list[Charge] = []
        for charged in charges:
            self._process.charged[charged.cust_id] += charged.count

        def charge(charge: Charge) -> bool:
            if self._state.charge(charge):
                granted.append(charge)
                return True
            return False

        results: list[bool | Undecided] = [UNDECIDED] * len(charges)
        try:
            results = await self._call(charges, charge)
            return results
        finally:
            # The port promises that an undecided charge is taken back. A crash ends the promise with the process.
            undecided = [charge for charge, result in zip(charges, results, strict=True) if result is UNDECIDED]
            if undecided:
                self._take_back_later(granted, undecided)

    def _take_back_later(self, granted: list[Charge], undecided: list[Charge]) -> None:
        task = self._process.run(self._take_back(granted, undecided))
        self._taking_back.add(task)
        task.add_done_callback(self._taking_back.discard)

    async def _take_back(self, granted: list[Charge], undecided: list[Charge]) -> None:
        await asyncio.sleep(_LATEST + 0.1)
        for charge in undecided:
            await self._process.runs(self._life)
            if charge in granted:
                self._state.refund(charge)

    async def refund(self, charges: Sequence[Charge]) -> None:
        results: list[object] = [UNDECIDED] * len(charges)
        with contextlib.suppress(StoreUnavailable):
            results = await self._call(charges, self._state.refund, certain=True)
        undecided = [charge for charge, result in zip(charges, results, strict=True) if result is UNDECIDED]
        if undecided:
            self._take_back_later(undecided, undecided)

    async def used(self, cust_id: str, month: str) -> int:
        (used,) = await self._call([(cust_id, month)], lambda key: self._state.used[key])
        return used or 0

    async def customer(self, cust_id: str) -> Customer | None:
        (customer,) = await self._call([cust_id], self._state.customers.get)
        return customer or None

    async def ready(self) -> None:
        await self._call([None], lambda _: None)

    async def close(self) -> None:
        """Spend a little time on the charges that must be taken back, as the Aerospike adapter does."""
        if self._taking_back:
            await asyncio.wait(self._taking_back, timeout=_CLOSE_TIMEOUT)

    # The operators' side of the registry and rate limits are not part of the simulation.

    async def claim_permits(self, claims: Sequence[PermitClaim]) -> list[int | Undecided]:
        raise NotImplementedError

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        raise NotImplementedError

    async def customers(self, prefix: str = "", limit: int | None = None) -> list[Customer]:
        raise NotImplementedError

    async def used_by(self, cust_ids: Sequence[str], month: str) -> list[int]:
        raise NotImplementedError

    async def producers(self) -> dict[str, float]:
        return {WITH_QUEUES: 1.0}

    async def add_producer(self, cust_id: str) -> None:
        raise NotImplementedError

    async def remove_producer(self, cust_id: str) -> None:
        raise NotImplementedError

    async def save_customer(self, customer: Customer) -> None:
        raise NotImplementedError

    async def keys(self, cust_id: str) -> list[ApiKey]:
        raise NotImplementedError

    async def key_counts(self, cust_ids: Sequence[str]) -> list[int]:
        raise NotImplementedError

    async def record_key_use(self, key_ids: Sequence[str], used_at: int) -> None:
        raise NotImplementedError

    async def save_key(self, key: ApiKey) -> None:
        raise NotImplementedError

    async def revoke_key(self, key_id: str) -> bool:
        raise NotImplementedError

    async def _call(
        self, arguments: Sequence[object], operation: Callable[..., T], *, certain: bool = False
    ) -> list[T | Undecided]:
        """Make one call for many records. Each record has a fate and a time of its own.

        `certain`: a record without an answer has not changed (an adapter that recognises its own writes).
        """
        if not arguments:
            return []
        await self._process.runs(self._life)
        network = self._network
        results: dict[int, T] = {}

        def take_effect(index: int, argument: object) -> None:
            results[index] = operation(argument)
            network.note(self._process.name, operation.__name__, argument, "->", results[index])

        answered: set[int] = set()
        slowest = 0.0
        for index, argument in enumerate(arguments):
            fate = network.fate(self._process, Server.STORE)
            if fate is Fate.ANSWERED or (fate is Fate.UNANSWERED and not certain):
                delay = network.delay()
                slowest = max(slowest, delay)
                network.later(delay, partial(take_effect, index, argument))
            elif fate is Fate.LATE and not certain:
                delay = _TIMEOUT + network.rng.uniform(0.0, _LATEST)
                network.later(delay, partial(take_effect, index, argument))
            if fate is Fate.ANSWERED:
                answered.add(index)
        await asyncio.sleep(slowest + network.delay() if len(answered) == len(arguments) else _TIMEOUT)
        await self._process.runs(self._life)
        if not answered:
            raise StoreUnavailable("the simulated store does not answer")
        return [results[index] if index in answered else UNDECIDED for index in range(len(arguments))]
