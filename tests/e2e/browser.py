"""The console in Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.processes import Ingest
from tests.servers.process import free_ports
from tests.support.summary import note_server

WIDTHS: Final = (1280, 390)
"""Pixels: a desk and a telephone."""

_TOO_WIDE: Final = """document.documentElement.scrollWidth <= document.documentElement.clientWidth ? [] :
    [...document.querySelectorAll("body *")].filter(part => part.getBoundingClientRect().right > innerWidth)
    .map(part => part.outerHTML.slice(0, 100))"""
"""The elements that make the page wider than the window."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        why = "chromium is not on PATH"
        note_server("Chromium", f"SKIPPED: {why}")
        pytest.skip(f"Chromium: {why}")
    with sync_playwright() as playwright:
        # Without a sandbox, because root has none; the pages are the console's own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        note_server("Chromium", f"chromium {browser.version} on PATH")
        yield browser
        browser.close()


@contextmanager
def console(directory: Path, env: dict[str, str], *arguments: str) -> Iterator[str]:
    """Run `ingest console`; yield its URL."""
    (port,) = free_ports(1)
    with Ingest("console", "--port", str(port), *arguments, directory=directory, env=env) as process:
        process.wait_for("ingest console is ready at http://127.0.0.1:")
        yield f"http://127.0.0.1:{port}"
        assert process.stop() == 0, process.text()


@contextmanager
def opened(
    browser: Browser, width: int, scheme: str = "light", token: str = "", *, refused: bool = False
) -> Iterator[Page]:
    """Yield a page that fails if it requests something from elsewhere or reports an error. The user is `ann`.

    `refused`: an answer may have a status of 400 or more, which Chromium reports.
    """
    credentials = {"username": "ann", "password": token} if token else None
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        http_credentials=credentials,  # type: ignore[arg-type]
    )
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: None if "//127.0.0.1:" in request.url else problems.append(request.url))
    yield page
    allowed = ("data:", "Failed to load resource") if refused else "data:"
    assert [problem for problem in problems if not problem.startswith(allowed)] == []
    context.close()


def check_page(page: Page) -> None:
    """Nothing is wider than the window, and axe-core finds no violation of any impact."""
    page.wait_for_load_state()
    assert page.evaluate(_TOO_WIDE) == [], page.url
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
