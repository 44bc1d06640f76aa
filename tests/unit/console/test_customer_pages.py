"""The pages of customers: what they show, link and escape, and what they say if something cannot be read."""

import time
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from ingest.console import Console
from ingest.console.access import Access
from ingest.console.customer_pages import CustomerPages, QuotaUse
from ingest.console.customers import Customers
from ingest.console.dead_letters import DeadLetters
from ingest.console.history import History
from ingest.domain.dead_letters import dead_letter
from ingest.domain.errors import BrokerUnavailable, ConfigurationError, InvalidSubmission, Reason, StoreUnavailable
from ingest.domain.events import rfc3339
from ingest.domain.overview import BrokerState, Overview, StoreState
from ingest.domain.rates import RateLimit
from ingest.operations.find import Findings
from ingest.store.sqlite import SqliteStore
from tests.support.customer_harness import CustomerHarness
from tests.support.dead_letter_queue import MemoryDeadLetters
from tests.support.deliveries import direct_delivery
from tests.support.fakes import Clock
from tests.unit.console.browser import ENTRY, HOSTILE, text

WEBHOOK = "https://a.example/hook?token=abc123"


class Harness(CustomerHarness):
    """A console with customers and dead letters."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        super().__init__(store, clock)
        self.queue = MemoryDeadLetters()
        self.broker_failure: Exception | None = None
        self.letters = DeadLetters(self._open_dead_letters)
        self.customers = Customers(self.open_to_read, clock)
        console = Console(Access("127.0.0.1"), History(self._collect), self._find, self.letters, self.customers)
        transport = httpx.ASGITransport(console, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def get(self, path: str, **parameters: str) -> httpx.Response:
        return await self._client.get(path, params=parameters or None)

    async def show(self, cust_id: str) -> httpx.Response:
        return await self.get("/customers/one", id=cust_id)

    def reject(self, cust_id: str, reason: Reason = Reason.INVALID, days: float = 1, **changes: Any) -> None:
        """Add a dead letter that died some days ago."""
        died = rfc3339(int((time.time() - days * 86_400) * 1000))
        error = InvalidSubmission(reason, "it is wrong")
        self.queue.add(dead_letter(direct_delivery("m", cust_id=cust_id, **changes), error, died))

    def _open_dead_letters(self, *, change: bool) -> Any:
        if self.broker_failure is not None:
            raise self.broker_failure
        return self.queue.open(change=change)

    async def _collect(self) -> Overview:
        return Overview(at=0, broker=BrokerState(name="b"), store=StoreState(name="s"))

    async def _find(self, sought: str, customer: str | None) -> Findings:
        return Findings(entries=[ENTRY])


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = await Harness.open(tmp_path)
    yield harness
    harness.gate.set()
    await harness.customers.close()
    await harness.letters.close()
    await harness.store.close()


async def test_list_shows_the_use_and_the_settings_of_each_customer(harness: Harness) -> None:
    await harness.add("acme", monthly_quota=2000, rate=RateLimit(50, 1), weight=2.5, webhooks=frozenset({WEBHOOK}))
    await harness.add("globex", disabled=True)
    await harness.charge("acme", 1234)
    await harness.charge("globex", 7)
    await harness.add_key("acme")
    for days in (1, 6, 8):
        harness.reject("acme", days=days)
    page = await harness.get("/customers")
    assert page.status_code == 200
    words = text(page)
    assert "2 customers, as of 2026-03-31T23:33:20Z" in words
    assert "quota used in 2026-03" in words
    assert "acme enabled 1,234 of 2,000 (61 %) 2.5 50/s 1 1 2" in words
    assert "globex disabled 7, unlimited 1 none 0 0 0" in words
    assert '<meter class="normal" min="0" max="2000" value="1234" aria-hidden="true">' in page.text
    assert page.text.count("<meter") == 1
    assert '<a href="/customers/one?id=acme">acme</a>' in page.text
    assert '<a href="/customers" aria-current="page">Customers</a>' in page.text
    assert "Over HTTP, a rejected submission is answered with an error and not stored" in words


async def test_list_is_filtered_by_the_beginning_of_the_id_and_has_pages(harness: Harness) -> None:
    for number in range(101):
        await harness.add(f"a{number:03}")
    await harness.add("b")
    first = await harness.get("/customers", prefix="a")
    assert "101 customers whose id begins with a , as of" in text(first)
    assert ("a000" in text(first), "a049" in text(first), "a050" in text(first)) == (True, True, False)
    assert '<a rel="next" href="/customers?prefix=a&amp;page=2">Next</a>' in first.text
    assert 'rel="prev"' not in first.text
    last = await harness.get("/customers", prefix="a", page="3")
    assert ("a100" in text(last), "Page 3 of 3" in text(last)) == (True, True)
    assert '<a rel="prev" href="/customers?prefix=a&amp;page=2">Previous</a>' in last.text
    assert 'rel="next"' not in last.text
    beyond = await harness.get("/customers", page="9" * 30)
    assert "Page 1 of 3" in text(beyond)
    assert "There are none on this page." in text(await harness.get("/customers", page="4"))
    assert harness.opened == 2


async def test_empty_list_says_what_to_do(harness: Harness) -> None:
    page = await harness.get("/customers")
    assert (page.status_code, "Add one with ingest customer add CUST" in text(page)) == (200, True)
    page = await harness.get("/customers", prefix="x")
    assert "No customer id begins with x" in text(page)
    assert (await harness.get("/customers", prefix="x" * 301)).status_code == 400


async def test_customer_is_shown_with_everything_that_it_has(harness: Harness) -> None:
    hooks = frozenset({WEBHOOK, "https://b.example/plain"})
    await harness.add("acme", monthly_quota=10, strict=True, retention=43_200, webhooks=hooks, rate=RateLimit(1, 60))
    await harness.charge("acme", 10)
    key = await harness.add_key("acme", name="import job", created_at=1_775_000_000_000, last_used_at=1_775_000_060_000)
    revoked = await harness.add_key("acme", revoked=True, created_at=1_775_000_000_001)
    await harness.store.add_producer("acme")
    harness.reject("acme", Reason.QUOTA_EXHAUSTED)
    harness.reject("acme", days=9)
    page = await harness.show("acme")
    assert page.status_code == 200
    words = text(page)
    for part in (
        "Customer acme",
        "quota used in 2026-03 10 of 10 (100 %) used up",
        "state enabled",
        "rate limit 1 submission per minute, over HTTP",
        "weight 1",
        "retention 12h",
        "strict yes",
        "direct producer with queues of its own, ingest.direct.acme.tasks and .batches",
        f"{key.key_id} import job valid 2026-03-31T23:33:20Z 2026-03-31T23:34:20Z",
        f"{revoked.key_id} - revoked 2026-03-31T23:33:20Z no use recorded",
        "https://a.example/hook?token=***",
        "https://b.example/plain",
        "invalid 0 1 Invalid payload",
        "quota_exhausted 1 1 Redrive it next month",
    ):
        assert part in words, part
    assert "/find?customer=acme" in page.text
    assert "/dead/list?customer=acme" in page.text
    assert '<a href="/dead/list?reason=quota_exhausted&amp;customer=acme">quota_exhausted</a>' in page.text
    for secret in (key.key_hash.hex(), key.key_hash.hex()[12:], "abc123"):
        assert secret not in page.text


async def test_customer_without_anything_says_what_to_do(harness: Harness) -> None:
    await harness.add("acme", disabled=True)
    words = text(await harness.show("acme"))
    for part in (
        "0, unlimited",
        "state disabled",
        "rate limit none",
        "direct producer no queues of its own",
        "so it cannot submit over HTTP: ingest key create adds one",
        "so no task may have a callback_url: ingest webhook add adds one",
        "This customer has no dead letters.",
    ):
        assert part in words, part


async def test_unknown_customer_is_answered_404_with_what_to_do(harness: Harness) -> None:
    """A direct producer may have dead letters nevertheless."""
    harness.reject("acme", Reason.UNKNOWN_CUSTOMER)
    page = await harness.show("acme")
    words = text(page)
    assert page.status_code == 404
    assert "There is no such customer" in words
    assert "add it with ingest customer add" in words
    assert "unknown_customer 1 1" in words
    for cust_id in ("", "x" * 301):
        assert (await harness.show(cust_id)).status_code == 404
    assert harness.opened == 1


async def test_pages_say_what_could_not_be_read(harness: Harness) -> None:
    """Dead letters are shown nevertheless, and other pages are not affected."""
    harness.failure = StoreUnavailable("no connection to s")
    harness.reject("acme")
    page = await harness.get("/customers")
    assert (page.status_code, "The customers could not be read: no connection to s" in text(page)) == (503, True)
    page = await harness.show("acme")
    assert (page.status_code, "The customer could not be read: no connection to s" in text(page)) == (503, True)
    assert "invalid 1 1" in text(page)
    harness.failure = ConfigurationError("s.db does not exist")
    assert (await harness.show("acme")).status_code == 503
    assert (await harness.get("/dead")).status_code == 200
    harness.failure = None
    await harness.add("acme")
    assert (await harness.get("/customers")).status_code == 200
    assert (await harness.show("acme")).status_code == 200


async def test_pages_do_not_wait_for_a_store_that_does_not_answer(harness: Harness) -> None:
    harness.gate.clear()
    harness.customers._patience = 0.01
    page = await harness.get("/customers")
    assert (page.status_code, "They are being read. Load again" in text(page)) == (200, True)

    def render(template: str, status: int, **fields: Any) -> Response:
        return Response(fields["failure"], status)

    pages = CustomerPages(harness.customers, harness.letters, render, timeout=0.01)
    answer = await pages.one(Request({"type": "http", "query_string": b"id=acme", "headers": []}))
    assert (answer.status_code, answer.body) == (503, b"the store did not answer within 0.01 s")


async def test_dead_letters_that_are_not_read_are_unknown_and_not_zero(harness: Harness) -> None:
    await harness.add("acme")
    harness.broker_failure = BrokerUnavailable("no connection to b")
    words = text(await harness.get("/customers"))
    assert "acme enabled 0, unlimited 1 none 0 0 -" in words
    assert "The dead letters could not be read: no connection to b" in words
    words = text(await harness.show("acme"))
    assert "There are none" not in words
    assert "The dead letters could not be read: no connection to b" in words


async def test_hostile_values_are_escaped_and_secrets_are_hidden(harness: Harness) -> None:
    """The commands accept none of these, but another program could store them."""
    name = f"c{HOSTILE}"
    url = f"https://user:secret@host/{HOSTILE}?token=abc"
    await harness.add(name, webhooks=frozenset({url}))
    await harness.add_key(name, name=f"{HOSTILE} asg_live_secret")
    await harness.store.add_producer(name)
    harness.reject(name)
    for page in (
        await harness.get("/customers"),
        await harness.get("/customers", prefix=name),
        await harness.get("/customers", prefix=f'x"{HOSTILE}'),
        await harness.show(name),
        await harness.show(f'x"{HOSTILE}'),
    ):
        assert "<script" not in page.text
        assert "&lt;script&gt;" in page.text
        assert "secret" not in page.text
        assert "token=abc" not in page.text
        inputs_removed = unescape(page.text).split("</form>")[-1]
        assert not {"\u202e", "\x1b"} & set(inputs_removed)
    assert (await harness.show(name)).status_code == 200


async def test_other_pages_link_to_the_customer(harness: Harness) -> None:
    harness.reject("acme")
    link = '<a href="/customers/one?id=acme">acme</a>'
    pages = [await harness.get("/dead"), await harness.get("/dead/list"), await harness.get("/find", q="k")]
    snapshot = await harness.letters.look()
    assert snapshot is not None
    (letter,), _ = snapshot.letters(limit=1)
    pages.append(await harness.get("/dead/letter", id=letter.id))
    assert [link in page.text for page in pages] == [True] * 4


@pytest.mark.parametrize(
    ("used", "limit", "percent", "level"),
    [
        (0, None, None, "normal"),
        (5, None, None, "normal"),
        (0, 0, None, "exhausted"),
        (0, 3, 0, "normal"),
        (2999, 3000, 99, "nearly"),
        (2700, 3000, 90, "nearly"),
        (2699, 3000, 89, "normal"),
        (3000, 3000, 100, "exhausted"),
        (6, 3, 200, "exhausted"),
    ],
)
def test_share_of_a_quota_is_100_only_if_it_is_used_up(
    used: int, limit: int | None, percent: int | None, level: str
) -> None:
    use = QuotaUse(used, limit)
    assert (use.percent, use.level) == (percent, level)
