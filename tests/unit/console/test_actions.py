"""What an operator can do with dead letters in the console, and what pages of other sites cannot."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from html import unescape
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from ingest.console.access import Access
from ingest.console.actions import State
from ingest.domain.messages import Message, PublishOutcome
from tests.support.tasks import TASK
from tests.unit.console.browser import HOSTILE, Browser, text

TOKEN = "correct horse battery"


class Operator(Browser):
    """A browser that keeps cookies and sends forms, on a console that allows actions."""

    async def form(self, path: str, **query: str) -> dict[str, str]:
        """Return the hidden fields of the form of a page."""
        page = await self.get(path, **query)
        assert page.status_code == 200, text(page)
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text))

    async def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        return await self.client.post(path, data=fields, headers=headers)

    async def act(self, kind: str, fields: dict[str, str] | None = None, **query: str) -> httpx.Response:
        """Load the form of an action, send it, and return the page to which the answer leads."""
        await self.letters.look(10)
        sent = await self.form(f"/dead/{kind}", **query) | (fields or {})
        answer = await self.client.post(f"/dead/{kind}", params=query, data=sent)
        if answer.status_code != 303:
            return answer
        await self.actions.wait(10)
        return await self.get(answer.headers["location"])


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    operator = Operator(allow_actions=True)
    yield operator
    await operator.actions.close()
    await operator.letters.close()


async def test_group_is_redriven(operator: Operator) -> None:
    for number in range(5):
        operator.reject(f"row-{number}", "acme" if number < 3 else "globex")
    dry = await operator.act("redrive", {"dry_run": "1"}, customer="acme")
    assert "Dry run: Redrive all of acme: done would be redriven 3" in text(dry)
    assert len(operator.queue.deliveries) == 5
    done = await operator.act("redrive", {"rate": "1000/s"}, customer="acme", reason="invalid")
    assert "Redrive invalid of acme: done redriven 3 rate at most 1,000.0 a second" in text(done)
    assert "refresh" not in done.headers
    assert [message.message_id for message in operator.queue.submitted] == ["row-0", "row-1", "row-2"]
    assert "2 dead letters, read at" in text(await operator.get("/dead"))
    listed = text(await operator.get("/dead/actions"))
    assert "2: Redrive invalid of acme done 3 local" in listed
    assert "1: Redrive, dry run all of acme done 3 local" in listed


async def test_redrive_that_the_broker_does_not_confirm_has_failed(operator: Operator) -> None:
    operator.reject("row")
    operator.queue.outcome = PublishOutcome.UNROUTABLE
    page = text(await operator.act("redrive"))
    assert "Redrive all: failed redriven 0 not confirmed 1 unroutable: they and the rest are still in the queue" in page
    assert len(operator.queue.deliveries) == 1


async def test_running_action_shows_its_progress_and_can_be_stopped(operator: Operator) -> None:
    """Another cannot begin meanwhile, and the pages do not wait for the queue."""
    for number in range(3):
        operator.reject(f"row-{number}")
    await operator.letters.look(10)
    fields = await operator.form("/dead/redrive")
    running = (await operator.post("/dead/redrive", fields | {"rate": "0.01"})).headers["location"]
    page = await operator.get(running)
    assert page.headers["refresh"] == "2"
    assert "Redrive all: running 1 of all 3 dead letters checked redriven 1" in text(page)
    assert "refresh" not in (await operator.get(running, paused="1")).headers
    busy = await operator.post("/dead/redrive", fields)
    assert (busy.status_code, "Another action is running." in text(busy)) == (409, True)
    operator.letters.changed()
    assert "They are read when the running action has ended." in text(await operator.get("/dead"))
    stopped = await operator.post(f"{running}/stop", await operator.form(running))
    assert (stopped.status_code, stopped.headers["location"]) == (303, running)
    assert "Redrive all: stopped redriven 1" in text(await operator.get(running))
    assert len(operator.queue.deliveries) == 2
    async with asyncio.timeout(10):
        while "2 dead letters, read at" not in text(await operator.get("/dead")):
            await asyncio.sleep(0)


async def test_action_does_not_wait_until_the_queue_was_read() -> None:
    operator = Operator(allow_actions=True)
    operator.reject("row")
    await operator.letters.look(10)
    fields = await operator.form("/dead/redrive")
    operator.letters.changed()
    operator.queue.readers_hang = True
    assert "They are being read" in text(await operator.get("/dead"))
    await operator.post("/dead/redrive", fields)
    assert [message.message_id for message in operator.queue.submitted] == ["row"]
    await operator.letters.close()


async def test_end_of_the_console_stops_an_action(operator: Operator) -> None:
    for number in range(3):
        operator.reject(f"row-{number}")
    await operator.letters.look(10)
    await operator.post("/dead/redrive", await operator.form("/dead/redrive") | {"rate": "0.01"})
    await operator.actions.close()
    assert [action.state for action in operator.actions.all] == [State.STOPPED]
    assert len(operator.queue.deliveries) == 2


async def test_deleting_needs_the_number_that_there_is(operator: Operator) -> None:
    for number in range(4):
        operator.reject(f"row-{number}", "acme" if number else "globex")
    for wrong in ({}, {"count": ""}, {"count": "x"}, {"count": "-3"}, {"count": "9" * 5000}):
        refused = await operator.act("purge", wrong, customer="acme")
        assert (refused.status_code, "type the number of dead letters" in text(refused)) == (400, True)
    mistyped = await operator.act("purge", {"count": "4"}, customer="acme")
    assert (mistyped.status_code, "you typed 4, and 3 are selected" in text(mistyped)) == (400, True)
    operator.reject("row-9")
    failed = await operator.act("purge", {"count": "3"}, customer="acme")
    assert "there are 4 now, and you confirmed 3: nothing was deleted" in text(failed)
    assert len(operator.queue.deliveries) == 5
    operator.letters.changed()
    assert "Delete all of acme: done deleted 4" in text(await operator.act("purge", {"count": "4"}, customer="acme"))
    assert len(operator.queue.deliveries) == 1


async def test_export_is_downloaded_and_the_next_one_replaces_it(operator: Operator) -> None:
    """It has the secrets in the submissions, which no page has. A download goes on beside the next export."""
    secret = TASK | {"data_url": "https://host.example/?token=hunter2"}
    ids = [operator.reject(f"row-{number}", body=secret) for number in range(3)]
    page = await operator.act("export")
    assert "hunter2" not in page.text
    file = await operator.get("/dead/actions/1/file")
    assert file.headers["content-disposition"] == 'attachment; filename="dead-letters-1.jsonl"'
    lines = [json.loads(line) for line in file.text.splitlines()]
    assert [line["id"] for line in lines] == ids
    assert json.loads(lines[0]["submission"]["body"]) == secret
    action = operator.actions.find(1)
    assert action is not None
    chunks = action.chunks()
    first = next(chunks)
    await operator.act("export", id=ids[0])
    assert first + b"".join(chunks) == file.content
    gone = await operator.get("/dead/actions/1/file")
    assert (gone.status_code, "export again" in text(gone)) == (404, True)
    assert len((await operator.get("/dead/actions/2/file")).text.splitlines()) == 1


async def test_export_that_is_too_large_is_not_kept() -> None:
    operator = Operator(allow_actions=True, max_export=1000)
    for number in range(3):
        operator.reject(f"row-{number}")
    page = text(await operator.act("export"))
    assert "failed they are more than 1,000 bytes: use `ingest dlq export`, or select fewer" in page
    assert (await operator.get("/dead/actions/1/file")).status_code == 404


async def test_id_that_its_producer_chose_selects_only_its_own(operator: Operator) -> None:
    """The values of a form's fields would lose such spaces and ends of lines."""
    for number, message_id in enumerate(("row", " row\n", "row\r\n")):
        headers = {"x-death": [{"queue": "ingest.tasks", "reason": "expired", "time": 1_775_736_000 + number}]}
        operator.queue.add(
            Message(exchange="", routing_key="task.submitted.acme", body=b"{}", message_id=message_id, headers=headers),
            "acme",
        )
    await operator.letters.look(10)
    page = await operator.get("/dead/list")
    paths = [unescape(path) for path in re.findall(r'<a href="(/dead/letter[^"]*)"', page.text)]
    letter = await operator.get(paths[1])
    (path,) = [unescape(path) for path in re.findall(r'<a href="(/dead/redrive[^"]*)"', letter.text)]
    form = await operator.get(path)
    (target,) = [unescape(target) for target in re.findall(r'<form action="([^"]*)" method="post"', form.text)]
    await operator.post(target, await operator.form(path))
    await operator.actions.wait(10)
    assert [message.message_id for message in operator.queue.submitted] == [" row\n"]


async def test_unknown_action_and_wrong_fields_are_said(operator: Operator) -> None:
    operator.reject("row")
    assert (await operator.get("/dead/actions/7")).status_code == 404
    wrong = await operator.act("redrive", {"rate": "fast"})
    assert (wrong.status_code, "the rate must be a number per second" in text(wrong)) == (400, True)
    for path in ("/dead/list", "/dead/redrive"):
        page = await operator.get(path, older="soon")
        assert (page.status_code, "older than must be a time such as 90s" in text(page)) == (400, True)


async def test_form_counts_only_with_its_cookie_and_from_this_console(operator: Operator) -> None:
    """It is refused without the token, with that of another browser, and if a page of another site sends it."""
    operator.reject("row")
    await operator.letters.look(10)
    fields = await operator.form("/dead/redrive")
    other = Operator(allow_actions=True)
    other.reject("row")
    await other.letters.look(10)
    with capture_logs() as logs:
        foreign: list[tuple[dict[str, str], dict[str, str], int]] = [
            ({"reason": "invalid"}, {}, 403),
            (await other.form("/dead/redrive"), {}, 403),
            (fields | {"form": fields["form"][:-1] + "é"}, {}, 403),
            (fields, {"cookie": "ingest_console="}, 403),
            (fields, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 403),
            (fields, {"sec-fetch-site": "same-site"}, 403),
            (fields, {"content-type": "text/plain"}, 415),
            (fields | {"x": "y" * 20_000}, {}, 413),
            (fields | {f"x{number}": "" for number in range(30)}, {}, 400),
        ]
        for sent, headers, status in foreign:
            answer = await operator.post("/dead/redrive", sent, **headers)
            assert answer.status_code == status, (sent, headers)
    assert not operator.actions.all
    assert {entry["event"] for entry in logs} == {"console_action_refused"}
    assert (await operator.post("/dead/redrive", fields)).status_code == 303


async def test_cookie_is_hidden_from_scripts_and_other_sites(operator: Operator) -> None:
    operator.reject("row")
    await operator.letters.look(10)
    cookie = (await operator.get("/dead/redrive")).headers["set-cookie"]
    assert re.fullmatch(r"ingest_console=[\w-]{43}; HttpOnly; Path=/; SameSite=strict", cookie)


async def test_token_of_a_form_belongs_to_its_user() -> None:
    operator = Operator(access=Access("10.0.0.1", "", "X-User"), allow_actions=True)
    operator.client.headers["x-user"] = "ann@example.com"
    operator.reject("row")
    await operator.letters.look(10)
    fields = await operator.form("/dead/redrive")
    assert (await operator.post("/dead/redrive", fields, **{"x-user": "eve@example.com"})).status_code == 403


async def test_log_says_who_did_what() -> None:
    operator = Operator(access=Access("127.0.0.1", TOKEN), allow_actions=True)
    operator.client.headers["authorization"] = "Basic " + base64.b64encode(f"ann:{TOKEN}".encode()).decode()
    operator.reject("row")
    with capture_logs() as logs:
        await operator.act("redrive", reason="invalid")
    facts = {"action": "redrive", "selected": "invalid", "dry_run": False}
    facts |= {"user": "ann", "identified_by": "token"}
    started, ended = logs
    assert (started["event"], ended["event"]) == ("console_action_started", "console_action_ended")
    for entry in logs:
        assert entry.items() >= facts.items()
    assert (ended["state"], ended["done"]) == ("done", 1)


async def test_console_that_only_reads_has_no_actions() -> None:
    reader = Operator()
    reader.reject("row")
    await reader.letters.look(10)
    for path in ("/dead/redrive", "/dead/purge", "/dead/export", "/dead/actions", "/dead/actions/1/file"):
        assert (await reader.get(path)).status_code == 404
        assert (await reader.post(path, {})).status_code == 404
    for path in ("/dead", "/dead/list"):
        page = await reader.get(path)
        assert "/dead/redrive" not in page.text
        assert "/dead/actions" not in page.text
        assert "read-only" in text(page)


async def test_hostile_texts_are_escaped(operator: Operator) -> None:
    letter = operator.reject(f"dead {HOSTILE}", f"c{HOSTILE}")
    pages: list[Any] = [await operator.act(kind, {"count": "1"}, id=letter) for kind in ("redrive", "purge", "export")]
    operator.reject(f"dead {HOSTILE}", f"c{HOSTILE}")
    pages += [await operator.get(f"/dead/{kind}", customer=f"c{HOSTILE}") for kind in ("redrive", "purge", "export")]
    pages.append(await operator.get("/dead/actions"))
    for page in pages:
        assert "<script" not in page.text
        assert "secret" not in page.text
        shown = re.sub(r'value="[^"]*"', "", page.text)
        assert not {"\u202e", "\x1b"} & set(shown)
