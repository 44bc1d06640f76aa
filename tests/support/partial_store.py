"""A store that cannot decide some records, as if they were too busy or their node were down."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Change, Charge, Entry, Undecided
from ingest.domain.metrics import NO_METER
from ingest.domain.ports import Store
from ingest.telemetry.store import MeteredStore

A = TypeVar("A")
R = TypeVar("R")


class PartialStore(MeteredStore):
    """Passes calls on to a store, except for the records of some ids and the charges of some customers.

    `undecided` are these ids and cust_ids, and `operations` the methods that cannot decide them. If `takes_effect` is
    true, writes succeed nevertheless, and only the answers are lost. As the port says, a call of which nothing is
    decided raises StoreUnavailable. The records of the customers in `unreadable` cannot be read; `looked_up` are the
    customers that were asked for.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store, NO_METER)
        self.undecided: set[str] = set()
        self.operations = {"claim", "read", "apply", "accept", "charge"}
        self.takes_effect = False
        self.unreadable: set[str] = set()
        self.looked_up: list[str] = []

    async def customer(self, cust_id: str) -> Customer | None:
        self.looked_up.append(cust_id)
        if cust_id in self.unreadable:
            raise StoreUnavailable(f"the record of customer {cust_id} cannot be read")
        return await super().customer(cust_id)

    async def claim(self, entries: Sequence[Entry]) -> Sequence[Entry | Undecided]:
        return await self._decide("claim", entries, lambda entry: entry.id, super().claim)

    async def read(self, ids: Sequence[str]) -> Sequence[Entry | Undecided | None]:
        return await self._decide("read", ids, str, super().read)

    async def apply(self, changes: Sequence[Change]) -> Sequence[Entry | Undecided | None]:
        return await self._decide("apply", changes, lambda change: change.entry.id, super().apply)

    async def accept(self, entries: Sequence[Entry]) -> Sequence[bool]:
        return [bool(done) for done in await self._decide("accept", entries, lambda entry: entry.id, super().accept)]

    async def charge(self, charges: Sequence[Charge]) -> Sequence[bool | Undecided]:
        return await self._decide("charge", charges, lambda charge: charge.cust_id, super().charge)

    async def _decide(
        self,
        operation: str,
        arguments: Sequence[A],
        id_of: Callable[[A], str],
        call: Callable[[Sequence[A]], Awaitable[Sequence[R]]],
    ) -> list[R | Undecided]:
        lost = [operation in self.operations and id_of(argument) in self.undecided for argument in arguments]
        # The port says that an undecided charge never counts.
        takes_effect = self.takes_effect and operation != "charge"
        passed = [argument for argument, is_lost in zip(arguments, lost, strict=True) if takes_effect or not is_lost]
        answers = iter(await call(passed))
        results: list[R | Undecided] = []
        for is_lost in lost:
            answer = next(answers) if takes_effect or not is_lost else UNDECIDED
            results.append(UNDECIDED if is_lost else answer)
        if lost and all(lost):
            raise StoreUnavailable("the store does not answer")
        return results
