"""A ledger and dead letters in which submissions are looked for."""

from typing import Any

import msgspec

from ingest.admission import Admission, Decision, Request
from ingest.domain.dead_letters import dead_letter
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.ledger import Entry
from ingest.domain.ports import Store
from ingest.domain.trace import Trace
from ingest.operations.find import Findings, find, search_queue
from ingest.store.sqlite import SqliteStore
from tests.support.dead_letter_queue import MemoryDeadLetters
from tests.support.deliveries import direct_delivery
from tests.support.fakes import Clock

TRACE = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
DIED = "2026-04-09T12:00:00Z"
LEASE = 30


class FindHarness:
    """A ledger with one customer and a clock, and dead letters."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.letters = MemoryDeadLetters()
        self.admission = Admission(store, lease=LEASE, clock=clock, monotonic=clock)

    async def admit(self, request: Request) -> Decision:
        return (await self.admission.admit([request]))[0]

    async def queue(self, request: Request) -> Decision:
        decision = await self.admit(request)
        await self.admission.queued([decision])
        return decision

    async def accept(self, request: Request) -> list[Entry]:
        decision = await self.queue(request)
        entries = list(decision.owned)
        assert all(await self.store.accept(entries))
        return entries

    async def open_store(self) -> Store:
        return OpenStore(self.store)

    async def find(self, sought: str, customer: str | None = None) -> Findings:
        return await find(sought, self.open_store, search_queue(self.letters.open), customer)

    async def states(self, sought: str) -> list[str]:
        return [entry.state for entry in (await self.find(sought)).entries]

    def reject(self, key: str | None, reason: Reason = Reason.QUOTA_EXHAUSTED, **changes: Any) -> None:
        """Add the dead letter of a direct submission with this message_id."""
        fields: dict[str, Any] = {"cust_id": "c"} | changes
        delivery = direct_delivery(key or "", **fields)
        message = dead_letter(delivery, InvalidSubmission(reason, "no quota is left"), DIED)
        self.letters.add(msgspec.structs.replace(message, headers=message.headers | TRACE.headers()))


class OpenStore(SqliteStore):
    """The store, which stays open for further searches."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store._file, store._clock)

    async def close(self) -> None:
        """The fixture closes it."""
