"""An admission on a real SQLite ledger, and requests for it."""

from typing import Any

from ingest.admission import Admission, Decision, Request
from ingest.domain.customers import Customer
from ingest.domain.submissions import batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock, used

SPEC = {"question": "q?", "options": ["a", "b"]}
CUSTOMER = Customer(cust_id="c", monthly_quota=10)


def body(**changes: Any) -> dict[str, Any]:
    return {"type": "sentiment", "data_url": "https://a.example/x", "label_spec": SPEC} | changes


def task(key: str | None = None, customer: Customer = CUSTOMER, **changes: Any) -> Request:
    return Request(task_submission(body(**changes), customer.cust_id, customer.webhooks, key), customer)


def batch(*item_keys: str | None, key: str | None = None, customer: Customer = CUSTOMER) -> Request:
    items = [body(idempotency_key=item_key) if item_key else body() for item_key in item_keys]
    return Request(batch_submission({"tasks": items}, customer.cust_id, customer.webhooks, key), customer)


class AdmissionHarness:
    """An admission with its store and its clock."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.admission = Admission(store, lease=30, clock=clock, monotonic=clock)

    async def admit(self, *requests: Request) -> list[Decision]:
        return await self.admission.admit(requests)

    async def admit_one(self, request: Request) -> Decision:
        return (await self.admission.admit([request]))[0]

    async def used(self) -> int:
        return await used(self.store)
