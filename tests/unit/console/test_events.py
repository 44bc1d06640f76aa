"""The page of events: what it shows, what it escapes, and that it can be paused."""

import httpx
import msgspec

from ingest.console import Events
from ingest.domain import events
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.submissions import task_submission
from ingest.telemetry.recent_events import MAX_BODY, RecentEvents
from tests.support.tasks import TASK
from tests.unit.console.browser import HOSTILE, Browser, text

SECONDS = 1_775_736_000
EXAMPLE = 'curl -X POST http://127.0.0.1:8080/v1/tasks -H "Authorization: Bearer $API_KEY"'


def accepted(cust_id: str = "dev") -> bytes:
    task = task_submission(TASK, cust_id, frozenset(), "k1").tasks[0]
    return events.task_accepted(task, cust_id, SECONDS * 1000, key="k1").body


def rejected(message_id: str, cust_id: str = "dev") -> bytes:
    error = InvalidSubmission(Reason.INVALID, f"wrong: {message_id}")
    return events.rejected(cust_id, message_id, SECONDS * 1000, error, "digest").body


async def get(recent: RecentEvents | None, path: str = "/events") -> httpx.Response:
    browser = Browser(events=None if recent is None else Events(recent, EXAMPLE))
    return await browser.get(path)


async def test_page_without_events_says_how_to_submit_a_task() -> None:
    page = await get(RecentEvents())
    assert page.status_code == 200
    assert "There are no events yet." in text(page)
    assert EXAMPLE in text(page)


async def test_events_are_shown_newest_first_with_links_to_find() -> None:
    recent = RecentEvents(lambda: SECONDS + 0.5)
    recent.add([accepted(), rejected("m1")])
    page = await get(recent)
    words = text(page)
    task_id = msgspec.json.decode(accepted())["data"]["task_id"]
    assert "2 since the start; newest first." in words
    assert "2026-04-09T12:00:00Z submission.rejected m1 dev - JSON" in words
    assert f"2026-04-09T12:00:00Z task.accepted {task_id} dev {TASK['type']} JSON" in words
    assert words.index("submission.rejected") < words.index("task.accepted")
    assert f'<a href="/find?q={task_id}&amp;customer=dev">' in page.text
    assert '"label_spec": {' in words


async def test_page_loads_again_by_itself_until_it_is_paused() -> None:
    recent = RecentEvents()
    page = await get(recent)
    assert page.headers["refresh"] == "5"
    assert '<a href="/events?paused=1">Pause</a>' in page.text
    paused = await get(recent, "/events?paused=1")
    assert "refresh" not in paused.headers
    assert '<a href="/events">resume</a>' in paused.text
    assert "refresh" not in (await get(recent, "/find")).headers


async def test_many_events_are_counted_and_large_ones_are_shown_without_their_body() -> None:
    recent = RecentEvents()
    recent.add([rejected("m")] * 1234)
    recent.add([rejected("m") + b" " * MAX_BODY])
    words = text(await get(recent))
    assert "1,235 since the start, the latest 200 of them here; newest first." in words
    assert "bytes of JSON are not kept here." in words


async def test_hostile_texts_are_escaped_and_secrets_are_hidden() -> None:
    recent = RecentEvents()
    recent.add([rejected(f"m{HOSTILE} https://user:secret@host/?token=abc", f"c{HOSTILE}")])
    data = {"cust_id": "dev", "task_id": "t", "metadata": {"api_key": "s3cret", "note": HOSTILE}}
    recent.add([msgspec.json.encode({"type": "a.b.task.accepted", "data": data})])
    for path in ("/events", "/events?paused=1"):
        page = await get(recent, path)
        assert page.status_code == 200
        assert "&lt;script&gt;" in page.text
        assert not [part for part in ("<script", "secret", "s3cret", "\u202e", "\x1b") if part in page.text]
        assert "abc" not in page.text


async def test_only_a_console_with_events_has_the_page() -> None:
    page = await get(None)
    assert (page.status_code, "There is no such page." in text(page)) == (404, True)
    assert 'href="/events"' not in page.text
    find = await get(RecentEvents(), "/find")
    assert '<a href="/events">Events</a>' in find.text


async def test_page_of_events_forbids_scripts_like_all_others() -> None:
    page = await get(RecentEvents())
    assert page.headers["content-security-policy"].startswith("default-src 'none';")
    assert page.headers["cache-control"] == "no-store"
