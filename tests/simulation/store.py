"""A simulated store: one shared state, reached by each process over a network with faults."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from ingest.domain.customers import ApiKey, Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Doubt, Entry
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

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        return await self._each(entries, self._state.claim)

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        return await self._each(ids, self._state.stored)

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        for entry in [change.entry for change in changes if change.entry.doubt is Doubt.REFUNDED]:
            self._process.charged[entry.cust_id] += entry.tasks  # until its refund
        return await self._each(changes, self._state.apply)

    async def in_doubt(self, idle: int) -> list[Entry]:
        (entries,) = await self._each([idle], self._state.in_doubt)
        return entries

    async def accept(self, entries: Sequence[Entry]) -> None:
        await self._each(entries, self._state.accept)

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        granted: list[Charge] = []
        for charged in charges:
            self._process.charged[charged.cust_id] += charged.count

        def charge(charge: Charge) -> bool:
            if self._state.charge(charge):
                granted.append(charge)
                return True
            return False

        try:
            return await self._each(charges, charge)
        except StoreUnavailable:
            # The port promises that a charge in doubt is taken back. A crash ends the promise with the process.
            self._take_back_later(granted)
            raise

    def _take_back_later(self, charges: list[Charge]) -> None:
        task = self._process.run(self._take_back(charges))
        self._taking_back.add(task)
        task.add_done_callback(self._taking_back.discard)

    async def _take_back(self, granted: list[Charge]) -> None:
        await asyncio.sleep(_LATEST + 0.1)
        while granted:
            await self._process.runs(self._life)
            self._state.refund(granted.pop())

    async def refund(self, charges: Sequence[Charge]) -> None:
        pending = list(charges)

        def refund(charge: Charge) -> None:
            self._state.refund(charge)
            pending.remove(charge)

        try:
            await self._each(charges, refund, certain=True)
        except StoreUnavailable:
            self._take_back_later(pending)

    async def used(self, cust_id: str, month: str) -> int:
        (used,) = await self._each([(cust_id, month)], lambda key: self._state.used[key])
        return used

    async def customer(self, cust_id: str) -> Customer | None:
        (customer,) = await self._each([cust_id], self._state.customers.get)
        return customer

    async def ready(self) -> None:
        await self._each([None], lambda _: None)

    async def close(self) -> None:
        """Spend a little time on the charges that must be taken back, as the Aerospike adapter does."""
        if self._taking_back:
            await asyncio.wait(self._taking_back, timeout=_CLOSE_TIMEOUT)

    # The operators' side of the registry is not part of the simulation.

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        raise NotImplementedError

    async def customers(self) -> list[Customer]:
        raise NotImplementedError

    async def save_customer(self, customer: Customer) -> None:
        raise NotImplementedError

    async def keys(self, cust_id: str) -> list[ApiKey]:
        raise NotImplementedError

    async def save_key(self, key: ApiKey) -> None:
        raise NotImplementedError

    async def revoke_key(self, key_id: str) -> bool:
        raise NotImplementedError

    async def _each(
        self, arguments: Sequence[object], operation: Callable[..., T], *, certain: bool = False
    ) -> list[T]:
        """Make one call for many records. Each record has a fate and a time of its own.

        `certain`: a call without an answer has no effect (an adapter that recognises its own writes).
        """
        if not arguments:
            return []
        await self._process.runs(self._life)
        network = self._network
        results: dict[int, T] = {}

        def take_effect(index: int, argument: object) -> None:
            results[index] = operation(argument)
            network.note(self._process.name, operation.__name__, argument, "->", results[index])

        answered = True
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
            answered = answered and fate is Fate.ANSWERED
        if not answered:
            await asyncio.sleep(_TIMEOUT)
            await self._process.runs(self._life)
            raise StoreUnavailable("the simulated store does not answer")
        await asyncio.sleep(slowest + network.delay())
        await self._process.runs(self._life)
        return [results[index] for index in range(len(arguments))]
