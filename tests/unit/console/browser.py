"""A console with everything that it shows, and a browser that reads its pages."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from html import unescape
from typing import Any

import httpx

from ingest.console import Console, Events
from ingest.console.access import Access
from ingest.console.actions import MAX_EXPORT, Actions
from ingest.console.customers import Customers
from ingest.console.dead_letters import DeadLetters
from ingest.console.history import History
from ingest.domain.dead_letters import dead_letter
from ingest.domain.errors import InvalidSubmission, Reason, StoreUnavailable
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Phase
from ingest.domain.overview import BrokerState, DeadReason, Overview, ProcessState, QueueState, StoreState
from ingest.domain.ports import Store
from ingest.operations.find import Findings, FoundDeadLetter, FoundEntry
from tests.support.dead_letter_queue import MemoryDeadLetters
from tests.support.deliveries import direct_delivery

HOSTILE = "<script>alert('x')</script>\u202e\x1b[31m"
TASK_ID = "tsk_1xvaxkbhpkh25tv4swsfnt6pj7"
BATCH_ID = "bat_3azj7w8fvshn3vyfbznz1rwg00"
ENTRY = FoundEntry(
    kind=SubmissionKind.TASK,
    id=TASK_ID,
    cust_id="acme",
    phase=Phase.ACCEPTED,
    state="accepted: all its events are confirmed",
    created_at=1_775_000_000,
    changed_at=1_775_000_001,
    remembered_until=1_775_600_000,
    event_id=f"{TASK_ID}:accepted:1775000000000",
    event_confirmed=True,
    batch_id=BATCH_ID,
    batch_index=3,
    message_id=HOSTILE,
)
LETTER = FoundDeadLetter(
    id=f"dead:{HOSTILE}",
    reason="invalid",
    error=f"{HOSTILE} https://user:secret@host/?token=abc",
    cust_id="acme",
    submission_id="",
    message_id="m",
    died_at=None,
    from_shim=False,
    redrivable=False,
    what_to_do="Ask the customer.",
    trace_id="",
)
OVERVIEW = Overview(
    at=1_775_735_999.0,
    broker=BrokerState(
        name="RabbitMQ at 10.20.30.41:5672",
        version="4.3.0",
        queues=[
            QueueState(name="ingest.http.0", ready=1234, consumers=2, rate_in=1.5, oldest=61.0),
            QueueState(name="ingest.dead", ready=42, consumers=0),
        ],
        problems=[f"node {HOSTILE} is down"],
    ),
    store=StoreState(name="Aerospike at 10.20.30.51:3000", version="8.1.0", round_trip=0.0012),
    processes=[ProcessState(url="http://10.20.30.40:9464", process="0", ready=False, breaker_open=True)],
    dead=[DeadReason(reason="quota_exhausted", count=42, oldest=7200.0)],
)


DIED = "2026-04-09T12:00:00Z"


class Browser:
    """Reads pages of a console whose searches answer `findings`; `sought` has what was looked for."""

    def __init__(
        self,
        *,
        access: Access | None = None,
        collect: Callable[[], Awaitable[Overview]] | None = None,
        allow_actions: bool = False,
        max_export: int = MAX_EXPORT,
        events: Events | None = None,
    ) -> None:
        self.findings = Findings()
        self.sought: list[tuple[str, str | None]] = []
        self.pause = 0.0
        self.history = History(collect or self._collect)
        self.queue = MemoryDeadLetters()
        self.letters = letters = DeadLetters(self.queue.open)
        self.actions = Actions(self.queue.open, letters, max_export=max_export)
        actions = self.actions if allow_actions else None
        customers = Customers(self._no_store)
        access = access or Access("127.0.0.1")
        self.console = Console(access, self.history, self._find, letters, customers, actions, 0.2, events)
        transport = httpx.ASGITransport(self.console, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def get(self, path: str, **parameters: str) -> httpx.Response:
        return await self.client.get(path, params=parameters or None)

    def reject(self, message_id: str, cust_id: str = "acme", **changes: Any) -> str:
        """Add a dead letter; return its id."""
        delivery = direct_delivery(message_id, cust_id=cust_id, **changes)
        message = dead_letter(delivery, InvalidSubmission(Reason.INVALID, f"{message_id} is wrong"), DIED)
        self.queue.add(message)
        return message.message_id

    async def request(self, method: str, path: str, **headers: str) -> httpx.Response:
        return await self.client.request(method, path, headers=headers)

    async def _collect(self) -> Overview:
        return OVERVIEW

    async def _no_store(self) -> Store:
        raise StoreUnavailable("no connection")

    async def _find(self, sought: str, customer: str | None) -> Findings:
        self.sought.append((sought, customer))
        await asyncio.sleep(self.pause)
        if sought == "defect":
            raise ZeroDivisionError
        return self.findings


def text(page: httpx.Response) -> str:
    """Return what a person reads."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.text)).split())
