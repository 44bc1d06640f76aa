"""`ingest console` in Chromium: what people see at both widths, and what a screen reader gets.

axe-core checks the pages. They are shown beside `ingest dev`, and on RabbitMQ and Aerospike.
"""

import asyncio
import re
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import msgspec
import pytest
from playwright.sync_api import Browser, expect

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import Message, PublishOutcome
from tests.e2e.browser import WIDTHS, check_page, chromium, console, opened
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until

__all__ = ["chromium"]  # a fixture

KEYED = TASK | {"idempotency_key": "order-7"}
TOKEN = "correct horse battery"


def submit(url: str, key: str) -> str:
    answer = httpx.post(f"{url}/v1/tasks", json=KEYED, headers={"Authorization": f"Bearer {key}"}, timeout=20)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


async def publish_invalid(url: str, cust_id: str) -> None:
    broker = RabbitBroker(url)
    message = Message(
        exchange=topology.SUBMISSIONS,
        routing_key=f"task.submitted.{cust_id}",
        body=msgspec.json.encode(TASK | {"type": "no such type"}),
        message_id="row-1",
    )
    assert await (await broker.publisher()).publish([message]) == [PublishOutcome.CONFIRMED]
    await broker.close()


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """`ingest dev` with an accepted task, and a console beside it: the console's URL, the task's id, the directory."""
    directory = tmp_path_factory.mktemp("dev")
    port, metrics = free_ports(2)
    url = f"http://127.0.0.1:{port}"
    env = {"INGEST_METRICS_PORT": str(metrics)}
    with ExitStack() as stack:
        process = stack.enter_context(
            Ingest("dev", "--port", str(port), "--api-key", "key", directory=directory, env=env)
        )
        process.wait_for("serving")
        wait_ready(url)
        task_id = submit(url, "key")
        process.wait_for("task.accepted")
        console_url = stack.enter_context(console(directory, {}, "--scrape", f"http://127.0.0.1:{metrics}"))
        yield console_url, task_id, directory


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_readable_at_every_width_and_by_everybody(
    chromium: Browser, dev: tuple[str, str, Path], width: int, scheme: str
) -> None:
    url, task_id, _ = dev
    with opened(chromium, width, scheme) as page:
        for path in ("/", "/find", f"/find?q={task_id}", "/find?q=nothing", "/dead", "/dead/list"):
            page.goto(url + path)
            check_page(page)


def test_support_person_finds_a_task_by_its_key_with_the_keyboard(
    chromium: Browser, dev: tuple[str, str, Path]
) -> None:
    url, task_id, _ = dev
    with opened(chromium, WIDTHS[0]) as page:
        page.goto(url)
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        expect(page.get_by_text("No problems seen.")).to_be_visible()
        expect(page.get_by_role("row", name="consensus.tasks 1")).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.get_by_role("link", name="Find").press("Enter")
        page.get_by_label("Id, idempotency key, message_id, or id of a dead letter").fill("order-7")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name=f"Task {task_id} of dev")).to_be_visible()
        expect(page.get_by_text("accepted: all its events are confirmed")).to_be_visible()
        assert page.url == f"{url}/find?q=order-7&customer="


def test_process_that_serves_metrics_is_shown(chromium: Browser, dev: tuple[str, str, Path]) -> None:
    url, _, _ = dev
    with opened(chromium, WIDTHS[0]) as page:
        page.goto(url)
        expect(page.get_by_role("row", name="http://127.0.0.1")).to_contain_text("yes")


def test_dev_serves_the_console_on_a_free_port(chromium: Browser, tmp_path: Path) -> None:
    """If the one that it was given is taken, for example by another `ingest dev`."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        arguments = ("--port", "0", "--console-port", str(number))
        with Ingest("dev", *arguments, directory=tmp_path) as process:
            process.wait_for("is ready at")
            found = re.search(r"console: (http://127\.0\.0\.1:(\d+))", process.text())
            assert found
            assert int(found[2]) not in (0, number)
            with opened(chromium, WIDTHS[0]) as page:
                page.goto(found[1])
                expect(page.get_by_text("No problems seen.")).to_be_visible()
            assert process.stop() == 0, process.text()


def test_console_asks_for_its_token(chromium: Browser, dev: tuple[str, str, Path]) -> None:
    _, _, directory = dev
    with console(directory, {"INGEST_CONSOLE_TOKEN": TOKEN}) as url:
        assert httpx.get(url).status_code == 401
        with opened(chromium, WIDTHS[0], token=TOKEN) as page:
            page.goto(url)
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def test_search_creates_no_file(chromium: Browser, tmp_path: Path) -> None:
    """In a directory in which nothing has run. The page says what is missing."""
    with console(tmp_path, {}) as url, opened(chromium, WIDTHS[0]) as page:
        page.goto(f"{url}/find?q=order-7")
        expect(page.get_by_text("order-7 was not found in what could be read.")).to_be_visible()
        expect(page.get_by_text("Missing: the ledger: ")).to_be_visible()
        expect(page.get_by_text("Missing: the dead letters: ")).to_be_visible()
        check_page(page)
    assert not (tmp_path / ".ingest").exists()


def test_misspelt_setting_is_logged(tmp_path: Path) -> None:
    """A misspelt token would leave the console open."""
    (port,) = free_ports(1)
    env = {"INGEST_CONSOLE_TOKENS": TOKEN}
    with Ingest("console", "--port", str(port), directory=tmp_path, env=env) as process:
        process.wait_for("unknown_setting")
        assert "INGEST_CONSOLE_TOKEN" in process.text()
        process.wait_for("is ready at")
        assert process.stop() == 0


def test_console_does_not_start_open_to_the_network(tmp_path: Path) -> None:
    refused = run_ingest("console", "--host", "0.0.0.0", env={}, directory=tmp_path)
    assert refused.returncode == 2
    assert "open to everyone who reaches 0.0.0.0: set INGEST_CONSOLE_TOKEN" in refused.stderr


def test_pages_show_rabbitmq_and_aerospike(
    chromium: Browser, rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> None:
    """A task that no worker takes is a problem on the overview, and queued in the search.

    A direct one that is invalid is found among the dead letters, with its error and its body.
    """
    (port,) = free_ports(1)
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    for arguments in (("topology", "apply"), ("customer", "add", cust_id)):
        assert run_ingest(*arguments, env=env, directory=tmp_path).returncode == 0
    created = run_ingest("key", "create", cust_id, "--json", env=env, directory=tmp_path)
    with Ingest("serve", "--port", str(port), directory=tmp_path, env=env) as serve:
        serve.wait_for("serving")
        wait_ready(f"http://127.0.0.1:{port}")
        task_id = submit(f"http://127.0.0.1:{port}", httpx.Response(200, text=created.stdout).json()["api_key"])
    with console(tmp_path, env) as url, opened(chromium, WIDTHS[0]) as page:
        page.goto(f"{url}/find?q=order-7&customer={cust_id}")
        expect(page.get_by_role("heading", name=f"Task {task_id} of {cust_id}")).to_be_visible()
        expect(page.get_by_text("queued: it waits for a worker")).to_be_visible()
        wait_until(lambda: "1 message and no consumer" in httpx.get(url).text, "the problem", 30)
        page.goto(url)
        expect(page.get_by_role("row", name="ingest.http.*")).to_contain_text("1")
        check_page(page)
        assert "guest:guest" not in page.content()
        with ThreadPoolExecutor() as thread:  # Playwright runs an event loop in this one
            thread.submit(asyncio.run, publish_invalid(rabbitmq_url, cust_id)).result()
        with Ingest("work", directory=tmp_path, env=env) as work:
            work.wait_for("worker_started")
            wait_until(lambda: "1 dead letter: " in httpx.get(url).text, "the dead letter", 30)
            assert work.stop() == 0
        wait_until(lambda: ">all</a>" in httpx.get(url).text, "the reading", 60)
        page.goto(url)
        check_page(page)
        page.get_by_role("listitem").get_by_role("link", name="all").click()
        check_page(page)
        page.get_by_role("row", name=f"invalid {cust_id} 1").get_by_role("link", name="invalid").click()
        check_page(page)
        page.get_by_role("link", name="dead:").click()
        expect(page.get_by_text("invalid: type must be one of")).to_be_visible()
        expect(page.get_by_text('"type": "no such type"')).to_be_visible()
        check_page(page)
        page.get_by_role("link", name="Find its submission").click()
        expect(page.get_by_role("heading", name="Dead letter dead:")).to_be_visible()
