"""What happens to actions of the console in trouble: two clicks, two requests at once, a full disk, other consumers."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.console.actions import State
from tests.unit.console.browser import text
from tests.unit.console.test_actions import Operator


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    operator = Operator(allow_actions=True)
    for number in range(3):
        operator.reject(f"row-{number}")
    await operator.letters.look(10)
    yield operator
    operator.queue.may_close.set()
    await operator.actions.close()
    await operator.letters.close()


async def test_second_stop_does_not_interrupt_the_closing_of_the_queue(operator: Operator) -> None:
    """Otherwise the connection would stay open, and hold the dead letters, until the console ends."""
    fields = await operator.form("/dead/redrive")
    running = (await operator.post("/dead/redrive", fields | {"rate": "0.01"})).headers["location"]
    form = await operator.form(running)
    operator.queue.may_close.clear()
    for _ in range(2):
        await operator.post(f"{running}/stop", form)
        assert "running" in text(await operator.get(running))
    operator.queue.may_close.set()
    await operator.actions.wait(10)
    assert "Redrive all: stopped redriven 1" in text(await operator.get(running))
    assert operator.queue.open_now == 0


async def test_reading_that_an_action_stops_at_once_is_replaced(operator: Operator) -> None:
    """The page and the order arrive together, so the reading is cancelled before it has begun."""
    fields = await operator.form("/dead/redrive")
    operator.letters.changed()
    await asyncio.gather(operator.get("/dead"), operator.post("/dead/redrive", fields))
    await operator.actions.wait(10)
    assert "There are no dead letters." in text(await operator.get("/dead"))
    assert not operator.letters.is_reading


async def test_action_that_is_stopped_before_it_begins_has_ended(operator: Operator) -> None:
    fields = await operator.form("/dead/redrive")
    await operator.post("/dead/redrive", fields | {"dry_run": "1"})
    first = operator.actions.all[0].order
    operator.actions.start(first)
    await operator.actions.close()
    assert operator.actions.all[1].state is State.STOPPED
    assert operator.actions.running is None


async def test_dead_letters_that_another_consumer_holds_are_mentioned(operator: Operator) -> None:
    operator.queue.held_by_others = True
    page = text(await operator.act("redrive", {"dry_run": "1"}))
    assert "Another consumer held dead letters, which are not counted here" in page


async def test_download_that_is_not_read_leaves_no_file_open(operator: Operator) -> None:
    await operator.act("export")
    action = operator.actions.find(1)
    assert action is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        action.chunks()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_full_disk_is_said(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115
    page = text(await operator.act("export"))
    assert "failed the temporary file cannot be written: [Errno 28]" in page
    assert "exported 0" in page
    assert (await operator.get("/dead/actions/1/file")).status_code == 404


async def test_very_long_numbers_are_unknown(operator: Operator) -> None:
    assert (await operator.get(f"/dead/actions/{'9' * 5000}")).status_code == 404
    refused = await operator.act("purge", {"count": "9" * 5000, "dry_run": "1"})
    assert refused.status_code == 400


async def test_filter_keeps_what_names_no_customer(operator: Operator) -> None:
    page = await operator.get("/dead/list", without_customer="1")
    assert '<input type="hidden" name="without_customer" value="1">' in page.text
