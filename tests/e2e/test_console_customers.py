"""The customers of `ingest console` in Chromium, beside `ingest dev` and on RabbitMQ and Aerospike."""

import asyncio
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import WIDTHS, check_page, chromium, console, opened
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.e2e.test_console import publish_invalid, submit
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until

__all__ = ["chromium"]  # a fixture

SECRET = "abc123"
LONG_ID = "acme-" + "long-id-" * 7 + "end"
"""The longest id."""
BROKEN = """cells => cells.filter(cell => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    const text = range.getBoundingClientRect();
    return text.height > 30 || text.right > window.innerWidth - 16;
}).map(cell => cell.innerText)"""
"""Returns the texts that have several lines, or reach beyond the margin of the page."""


def add_customers(directory: Path, env: dict[str, str], *cust_ids: str) -> None:
    """Add customers with a quota, the first with an API key and a webhook."""
    for cust_id in cust_ids:
        added = run_ingest("customer", "add", cust_id, "--quota", "4", env=env, directory=directory)
        assert added.returncode == 0, added.stderr
    for arguments in (
        ("key", "create", cust_ids[0], "--name", "import <job>"),
        ("webhook", "add", cust_ids[0], f"https://hooks.example.com/labels?token={SECRET}"),
    ):
        assert run_ingest(*arguments, env=env, directory=directory).returncode == 0


def check_customer(page: Page, cust_id: str) -> None:
    """The page of a customer with an API key and a webhook shows both, and no secret."""
    expect(page.get_by_role("heading", name=f"Customer {cust_id}")).to_be_visible()
    expect(page.get_by_role("row", name="import <job>")).to_contain_text("valid")
    expect(page.get_by_text("https://hooks.example.com/labels?token=***")).to_be_visible()
    assert SECRET not in page.content()
    check_page(page)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`ingest dev` with an accepted task and further customers, and a console beside it: the console's URL."""
    directory = tmp_path_factory.mktemp("dev")
    (port,) = free_ports(1)
    with ExitStack() as stack:
        process = stack.enter_context(Ingest("dev", "--port", str(port), "--api-key", "key", directory=directory))
        process.wait_for("serving")
        wait_ready(f"http://127.0.0.1:{port}")
        submit(f"http://127.0.0.1:{port}", "key")
        process.wait_for("task.accepted")
        add_customers(directory, {}, "acme", LONG_ID)
        yield stack.enter_context(console(directory, {}))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_readable_at_every_width_and_by_everybody(
    chromium: Browser, dev: str, width: int, scheme: str
) -> None:
    with opened(chromium, width, scheme) as page:
        for path in ("", "?prefix=acme", "?prefix=nothing", "/one?id=dev"):
            page.goto(f"{dev}/customers{path}")
            check_page(page)
        page.goto(f"{dev}/customers")
        assert page.eval_on_selector_all("td[data-name=state]", BROKEN) == []
        page.goto(f"{dev}/customers/one?id=acme")
        check_customer(page, "acme")
        assert page.eval_on_selector_all("td[data-name=created], td[data-name=state]", BROKEN) == []


def test_operator_finds_a_customer_by_the_beginning_of_its_id_with_the_keyboard(chromium: Browser, dev: str) -> None:
    with opened(chromium, WIDTHS[0]) as page:
        page.goto(dev)
        page.get_by_role("link", name="Customers").press("Enter")
        expect(page.get_by_role("row", name="dev enabled 1, unlimited")).to_be_visible()
        page.get_by_label("Customer id begins with").fill("acm")
        page.keyboard.press("Enter")
        expect(page.get_by_text("2 customers whose id begins with acm")).to_be_visible()
        expect(page.get_by_role("row", name="acme enabled 0 of 4 (0 %) 1 none 1 1 0")).to_be_visible()
        page.get_by_role("link", name="acme", exact=True).press("Enter")
        check_customer(page, "acme")
        page.get_by_role("link", name="Find a submission of this customer").press("Enter")
        expect(page.get_by_label("Customer (empty: all)")).to_have_value("acme")


def test_unknown_customer_is_said_to_be_unknown(chromium: Browser, dev: str) -> None:
    assert httpx.get(f"{dev}/customers/one?id=missing").status_code == 404
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{dev}/customers/one?id=missing")
    expect(page.get_by_role("alert")).to_contain_text("There is no such customer")
    check_page(page)
    context.close()


def test_page_creates_no_store_and_says_what_is_missing(chromium: Browser, tmp_path: Path) -> None:
    with console(tmp_path, {}) as url:
        assert httpx.get(f"{url}/customers").status_code == 503
        assert httpx.get(f"{url}/customers/one?id=acme").status_code == 503
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"{url}/customers")
        expect(page.get_by_text("The customers could not be read: ")).to_be_visible()
        check_page(page)
        context.close()
    assert not (tmp_path / ".ingest").exists()


def test_pages_show_customers_of_rabbitmq_and_aerospike(
    chromium: Browser, rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> None:
    """With the dead letter of a direct submission, and own queues of the direct producer."""
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    assert run_ingest("topology", "apply", env=env, directory=tmp_path).returncode == 0
    add_customers(tmp_path, env, cust_id, f"{cust_id}-2")
    assert run_ingest("producer", "add", cust_id, env=env, directory=tmp_path).returncode == 0
    with ThreadPoolExecutor() as thread:  # Playwright runs an event loop in this one
        thread.submit(asyncio.run, publish_invalid(rabbitmq_url, cust_id)).result()
    with Ingest("work", directory=tmp_path, env=env) as work, console(tmp_path, env) as url:
        work.wait_for("worker_started")
        wait_until(lambda: "1 dead letter: " in httpx.get(url).text, "the dead letter", 30)
        wait_until(lambda: f">{cust_id}<" in httpx.get(f"{url}/dead").text, "the reading", 60)
        with opened(chromium, WIDTHS[1], "dark") as page:
            page.goto(f"{url}/customers?prefix={cust_id}")
            check_page(page)
        with opened(chromium, WIDTHS[0]) as page:
            page.goto(f"{url}/customers?prefix={cust_id}")
            check_page(page)
            expect(page.get_by_role("row", name=f"{cust_id} enabled 0 of 4 (0 %) 1 none 1 1 1")).to_be_visible()
            expect(page.get_by_role("row", name=f"{cust_id}-2 enabled 0 of 4 (0 %) 1 none 0 0 0")).to_be_visible()
            page.goto(f"{url}/dead")
            page.get_by_role("link", name=cust_id).click()
            check_customer(page, cust_id)
            expect(page.get_by_text("with queues of its own")).to_be_visible()
            page.get_by_role("row", name="invalid 1 1").get_by_role("link", name="invalid").click()
            expect(page.get_by_role("heading", name=f"invalid of {cust_id}: 1")).to_be_visible()
        assert work.stop() == 0
