"""The page of events in the console of `ingest dev`, in Chromium."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import WIDTHS, check_page, chromium, opened
from tests.e2e.processes import Ingest, wait_ready
from tests.e2e.test_console import submit
from tests.servers.process import free_ports

__all__ = ["chromium"]  # a fixture


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """`ingest dev`: the URL of its API and that of its console."""
    (port,) = free_ports(1)
    arguments = ("--port", str(port), "--console-port", "0", "--api-key", "s3cret-key", "--quiet")
    with Ingest("dev", *arguments, directory=tmp_path) as process:
        process.wait_for("serving")
        wait_ready(f"http://127.0.0.1:{port}")
        found = re.search(r"console: (http://127\.0\.0\.1:\d+)", process.text())
        assert found
        yield f"http://127.0.0.1:{port}", found[1]
        assert process.stop() == 0, process.text()


@pytest.mark.parametrize("width", WIDTHS)
def test_event_appears_by_itself_and_is_read_when_the_page_is_paused(
    chromium: Browser, dev: tuple[str, str], width: int
) -> None:
    api, url = dev
    with opened(chromium, width) as page:
        page.goto(url)
        page.get_by_role("link", name="Events").click()
        expect(page.get_by_text("There are no events yet.")).to_be_visible()
        expect(page.get_by_text(f"curl -sS -X POST {api}/v1/tasks")).to_be_visible()
        assert "s3cret-key" not in page.content()
        check_page(page)
        task_id = submit(api, "s3cret-key")
        expect(page.get_by_text("task.accepted", exact=True)).to_be_visible(timeout=20_000)
        check_page(page)
        page.get_by_role("link", name="Pause").click()
        page.get_by_text("JSON", exact=True).click()
        expect(page.get_by_label("CloudEvent", exact=True)).to_contain_text('"specversion": "1.0"')
        check_page(page)
        page.get_by_role("link", name=task_id).click()
        expect(page.get_by_role("heading", name=f"Task {task_id} of dev")).to_be_visible()
