"""Operators change dead letters in a browser: on RabbitMQ and Aerospike, and on the embedded default."""

import asyncio
import json
import re
import uuid
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.ports import Broker
from tests.e2e.browser import WIDTHS, check_page, chromium, console, opened
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until

__all__ = ["chromium"]  # a fixture

TOKEN = "a token of the console"


def in_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end. Playwright runs an event loop in the thread of the test."""
    with ThreadPoolExecutor() as thread:
        thread.submit(asyncio.run, work).result()


async def publish(broker: Broker, cust_id: str, *bodies: object) -> None:
    """Publish direct submissions as a producer does, and close the broker."""
    publisher = await broker.publisher()
    messages = [
        Message(
            exchange=topology.SUBMISSIONS,
            routing_key=f"task.submitted.{cust_id}",
            body=msgspec.json.encode(body),
            message_id=f"row-{number}",
        )
        for number, body in enumerate(bodies, 1)
    ]
    assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}
    await publisher.close()
    await broker.close()


def wait_for_letters(url: str, count: int) -> None:
    """Wait until the console has read so many dead letters."""
    wait_for_page(f"{url}/dead", f"<p>{count} dead letter" if count else "There are no dead letters.")


def wait_for_page(url: str, text: str) -> None:
    """Wait until a page shows a text."""
    wait_until(lambda: text in httpx.get(url, auth=("ann", TOKEN)).text, text, 60)


def act(page: Page, link: str, button: str, fields: dict[str, str] | None = None) -> None:
    """Follow a link to an action, fill in its form, and order it."""
    page.get_by_role("link", name=link, exact=True).click()
    check_page(page)
    for label, value in (fields or {}).items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name=button, exact=True).click()


def expect_end(page: Page, state: str, *facts: str) -> None:
    """Expect that the action that is shown ends so, and says these facts."""
    expect(page.get_by_role("heading", name=state)).to_be_visible(timeout=30_000)
    for fact in facts:
        expect(page.locator("dl")).to_contain_text(fact)
    check_page(page)


@pytest.fixture
def service(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> Iterator[tuple[dict[str, str], str]]:
    """Settings of a service with a worker, and its customer, who has no quota left."""
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
        "INGEST_CONSOLE_TOKEN": TOKEN,
        "INGEST_CONSOLE_ALLOW_ACTIONS": "true",
    }
    for arguments in (("topology", "apply"), ("customer", "add", cust_id, "--quota", "0")):
        done = run_ingest(*arguments, env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr
    with Ingest("work", directory=tmp_path, env=env) as work:
        work.wait_for("worker_started")
        yield env, cust_id


@pytest.mark.parametrize("width", WIDTHS)
def test_dead_letters_are_understood_and_redriven(
    chromium: Browser, service: tuple[dict[str, str], str], tmp_path: Path, width: int
) -> None:
    """One is still wrong and dies again, which is shown. The others were over quota, and are accepted."""
    env, cust_id = service
    in_thread(publish(RabbitBroker(env["INGEST_BROKER_URL"]), cust_id, TASK, TASK | {"type": "no such type"}, TASK))
    with console(tmp_path, env) as url, opened(chromium, width, token=TOKEN) as page:
        wait_for_letters(url, 3)
        page.goto(f"{url}/dead")
        page.get_by_role("row", name=re.compile(f"invalid.*{cust_id}")).get_by_role("link", name="invalid").click()
        page.get_by_role("link", name="dead:").click()
        expect(page.get_by_text("invalid: type must be one of")).to_be_visible()
        letter = page.url
        act(page, "Redrive", "Redrive 1")
        expect_end(page, "done", "redriven1", "ordered byann (token)")
        wait_for_page(letter, "1 time; it first died 20")
        page.goto(letter)
        expect(page.get_by_text("1 time; it first died 20")).to_be_visible()
        check_page(page)

        assert run_ingest("customer", "set", cust_id, "--quota", "9", env=env, directory=tmp_path).returncode == 0
        page.goto(f"{url}/dead/list?reason=quota_exhausted&customer={cust_id}")
        act(page, "Redrive", "Dry run", {"At most per second (empty: no limit)": "50"})
        expect_end(page, "Dry run: Redrive", "would be redriven2")
        page.goto(f"{url}/dead/list?reason=quota_exhausted&customer={cust_id}")
        act(page, "Redrive", "Redrive 2", {"At most per second (empty: no limit)": "50"})
        expect_end(page, "done", "redriven2", "at most 50.0 a second")
        wait_for_letters(url, 1)
        page.goto(f"{url}/find?q=row-1&customer={cust_id}")
        expect(page.get_by_text("accepted: all its events are confirmed")).to_be_visible()
        page.goto(f"{url}/dead/actions")
        expect(page.get_by_role("row")).to_have_count(4)
        check_page(page)


def test_dead_letters_are_exported_and_deleted(
    chromium: Browser, service: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    """Deleting needs their number, and deletes none if it is wrong. The log says who did it."""
    env, cust_id = service
    wrong = TASK | {"data_url": "https://host.example/?token=hunter2", "type": "x"}
    in_thread(publish(RabbitBroker(env["INGEST_BROKER_URL"]), cust_id, wrong, wrong))
    with console(tmp_path, env) as url, opened(chromium, WIDTHS[0], token=TOKEN, refused=True) as page:
        wait_for_letters(url, 2)
        page.goto(f"{url}/dead/list?customer={cust_id}")
        act(page, "Export", "Export 2")
        expect_end(page, "done", "exported2")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        lines = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
        assert [json.loads(line["submission"]["body"]) for line in lines] == [wrong, wrong]
        page.goto(f"{url}/dead/list?customer={cust_id}")
        act(page, "Delete", "Delete")
        expect(page.get_by_role("alert")).to_have_text("type the number of dead letters that you want to delete")
        check_page(page)
        page.get_by_label("Type 2 to delete them for good").fill("3")
        page.get_by_role("button", name="Delete").click()
        expect(page.get_by_role("alert")).to_have_text("you typed 3, and 2 are selected: nothing was deleted")
        page.goto(f"{url}/dead/list?customer={cust_id}")
        act(page, "Delete", "Delete", {"Type 2 to delete them for good": "2"})
        expect_end(page, "done", "deleted2")
        wait_for_letters(url, 0)
    (log,) = [file.read_text() for file in tmp_path.glob("console-*.log")]
    assert "hunter2" not in log
    ended = [json.loads(line) for line in log.splitlines() if "console_action_ended" in line]
    assert [(line["action"], line["state"], line["done"], line["user"]) for line in ended] == [
        ("export", "done", 2, "ann"),
        ("purge", "done", 2, "ann"),
    ]


def test_console_of_dev_redrives(chromium: Browser, tmp_path: Path) -> None:
    """The embedded queue has one writer, which is the same process."""
    (port,) = free_ports(1)
    queue = tmp_path / ".ingest" / "queue.db"

    async def fill() -> None:
        await publish(await EmbeddedBroker.open(queue), "dev", TASK, TASK | {"type": "x"}, TASK)

    in_thread(fill())
    arguments = ("--port", "0", "--console-port", str(port), "--quota", "1", "--allow-actions")
    with Ingest("dev", *arguments, directory=tmp_path) as dev, opened(chromium, WIDTHS[0]) as page:
        dev.wait_for("is ready at")
        url = f"http://127.0.0.1:{port}"
        wait_for_letters(url, 2)
        page.goto(f"{url}/dead/list")
        act(page, "Redrive", "Redrive 2")
        expect_end(page, "done", "redriven2", "ordered bylocal (loopback)")
        wait_for_letters(url, 2)
        page.goto(f"{url}/dead/list?reason=invalid")
        act(page, "Delete", "Delete", {"Type 1 to delete it for good": "1"})
        expect_end(page, "done", "deleted1")
        wait_for_letters(url, 1)
        assert dev.stop() == 0, dev.text()
