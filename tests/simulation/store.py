"""A simulated store: one shared state, reached by each process over a network with faults."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import msgspec

from ingest.domain.customers import ApiKey, Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Entry, Step, accepted, after
from tests.simulation.machines import Fate, Network, Process, Server

T = TypeVar("T")

_TIMEOUT: Final = 1.0
"""Seconds after which a caller gives up."""
_LATEST: Final = 2.0
"""Seconds after which a late call has taken effect, counted from the time at which its caller gave up."""


class StoreState:
    """What the store's servers hold. Its clock decides what has expired."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.ledger: dict[str, tuple[float, Entry]] = {}
        """By id: the end of its life in virtual seconds, and the entry."""
        self.used: dict[tuple[str, str], int] = defaultdict(int)
        self.customers: dict[str, Customer] = {}

    def stored(self, id_: str) -> Entry | None:
        expires, entry = self.ledger.get(id_, (0.0, None))
        return entry if expires > self._network.loop.time() else None

    def claim(self, entry: Entry) -> Entry:
        return self.stored(entry.id) or self._write(msgspec.structs.replace(entry, generation=1))

    def apply(self, change: Change) -> Entry | None:
        stored = self.stored(change.entry.id)
        if stored is None or stored.generation != change.entry.generation:
            return None
        if change.step is Step.FORGET and stored.owner != change.entry.owner:
            return None
        unchanged_for = self._network.loop.time() - (self.ledger[stored.id][0] - stored.time_to_live)
        if change.step is Step.TAKE_OVER and unchanged_for * 1000 < change.idle:
            return None
        if change.step is Step.FORGET:
            del self.ledger[change.entry.id]
            return stored
        return self._write(after(change, stored.generation + 1))

    def in_doubt(self, idle: int) -> list[Entry]:
        now = self._network.loop.time()
        return [
            entry
            for expires, entry in self.ledger.values()
            if expires > now and entry.charged and not entry.is_durable
            if (now - (expires - entry.time_to_live)) * 1000 >= idle
        ]

    def accept(self, entry: Entry) -> None:
        stored = self.stored(entry.id)
        latest = stored if stored and entry.generation else entry
        generation = stored.generation + 1 if stored else 1
        self._write(msgspec.structs.replace(accepted(latest), generation=generation))

    def charge(self, charge: Charge) -> bool:
        key = (charge.cust_id, charge.month)
        if self.used[key] + charge.count > charge.limit:
            return False
        self.used[key] += charge.count
        return True

    def refund(self, charge: Charge) -> None:
        key = (charge.cust_id, charge.month)
        self.used[key] = max(0, self.used[key] - charge.count)

    def used_by(self, cust_id: str) -> int:
        """Tasks charged, in all months."""
        return sum(count for (customer, _), count in self.used.items() if customer == cust_id)

    def _write(self, entry: Entry) -> Entry:
        self.ledger[entry.id] = (self._network.loop.time() + entry.time_to_live, entry)
        return entry


class SimulatedStore:
    """`domain.ports.Store` for one process."""

    def __init__(self, state: StoreState, process: Process) -> None:
        self._state = state
        self._process = process
        self._life = process.life
        self._network = process.network

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        return await self._each(entries, self._state.claim)

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        return await self._each(ids, self._state.stored)

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        return await self._each(changes, self._state.apply)

    async def in_doubt(self, idle: int) -> list[Entry]:
        (entries,) = await self._each([idle], self._state.in_doubt)
        return entries

    async def accept(self, entries: Sequence[Entry]) -> None:
        await self._each(entries, self._state.accept)

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        granted: list[Charge] = []

        def charge(charge: Charge) -> bool:
            if self._state.charge(charge):
                granted.append(charge)
                return True
            return False

        try:
            return await self._each(charges, charge)
        except StoreUnavailable:
            # The port promises that a charge in doubt is taken back. A crash ends the promise with the process.
            self._process.run(self._take_back(granted))
            raise

    async def _take_back(self, granted: list[Charge]) -> None:
        await asyncio.sleep(_LATEST + 0.1)
        while granted:
            await self._process.runs(self._life)
            self._state.refund(granted.pop())

    async def refund(self, charges: Sequence[Charge]) -> None:
        pending = list(charges)
        try:
            await self._each(pending, self._state.refund, certain=True)
        except StoreUnavailable:
            self._process.run(self._take_back(pending))

    async def used(self, cust_id: str, month: str) -> int:
        (used,) = await self._each([(cust_id, month)], lambda key: self._state.used[key])
        return used

    async def customer(self, cust_id: str) -> Customer | None:
        (customer,) = await self._each([cust_id], self._state.customers.get)
        return customer

    async def ready(self) -> None:
        await self._each([None], lambda _: None)

    async def close(self) -> None:
        """Nothing to close."""

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
