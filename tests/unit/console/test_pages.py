"""The pages: what they show, what they escape, and what they refuse."""

import re
import time

import pytest

from ingest.console.access import Access
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.overview import BrokerState, Overview, ProcessState, StoreState
from ingest.operations.find import Findings
from tests.unit.console.browser import BATCH_ID, ENTRY, HOSTILE, LETTER, OVERVIEW, TASK_ID, Browser, text


async def test_overview_shows_problems_first_and_then_everything_else() -> None:
    browser = Browser()
    await browser.history.sample()
    page = await browser.get("/")
    assert page.status_code == 200
    words = text(page)
    for part in (
        "As of 2026-04-09T11:59:59Z",
        "42 dead letters: run `ingest dlq list`, or see quota_exhausted , all",
        "ingest.http.* 1,234",
        "1m 1s",
        "quota_exhausted 42 2h",
        "http://10.20.30.40:9464 0 - no yes -",
        "RabbitMQ at 10.20.30.41:5672 4.3.0",
        "Aerospike at 10.20.30.51:3000 8.1.0, round trip 1.2 ms",
    ):
        assert part in words, part
    assert words.index("is down") < words.index("ingest.http.*")
    assert 'aria-label="ingest.http.*: ready messages in the last 15 minutes, at most 1,234"' in page.text


async def test_overview_of_a_service_without_problems_says_so() -> None:
    async def collect() -> Overview:
        return Overview(at=time.time(), broker=BrokerState(name="b"), store=StoreState(name="s"), dead=[])

    browser = Browser(collect=collect)
    await browser.history.sample()
    words = text(await browser.get("/"))
    for part in (
        "No problems seen.",
        "No queue is known",
        "There are no dead letters.",
        "Start the console with --scrape",
    ):
        assert part in words, part


async def test_different_versions_of_processes_are_a_note_and_no_problem() -> None:
    async def collect() -> Overview:
        processes = [
            ProcessState(url=f"http://host:{number}", process="0", version=version)
            for number, version in enumerate(("0.2.0", "0.1.0", f"0.2.0{HOSTILE}"))
        ]
        return Overview(at=time.time(), broker=BrokerState(name="b"), store=StoreState(name="s"), processes=processes)

    browser = Browser(collect=collect)
    await browser.history.sample()
    page = await browser.get("/")
    words = text(page)
    assert "No problems seen. Note: versions differ, as during an upgrade: 0.1.0 (1 process), 0.2.0 (1" in words
    assert "http://host:1 0 0.1.0 - - -" in words
    assert "<script" not in page.text


async def test_overview_says_what_could_not_be_collected() -> None:
    async def fail() -> Overview:
        raise BrokerUnavailable("no connection")

    browser = Browser(collect=fail)
    await browser.history.sample()
    page = await browser.get("/")
    assert (page.status_code, "the state could not be collected: no connection" in text(page)) == (503, True)
    browser.history.latest = OVERVIEW
    page = await browser.get("/")
    assert (page.status_code, "old: no connection" in text(page)) == (200, True)


async def test_found_submission_is_shown_with_links_to_its_ids() -> None:
    browser = Browser()
    browser.findings = Findings(
        entries=[ENTRY], dead_letters=[LETTER], dead_letter_count=8, missing=["the ledger: no answer"]
    )
    page = await browser.get("/find", q="order-1", customer="acme")
    assert browser.sought == [("order-1", "acme")]
    words = text(page)
    for part in (
        f"Task {TASK_ID} of acme",
        "state accepted: all its events are confirmed",
        f"batch {BATCH_ID} , index 3",
        f"event {TASK_ID}:accepted:1775000000000, confirmed",
        "what to do Ask the customer.",
        "Missing: the ledger: no answer",
        "7 older dead letters are not shown",
    ):
        assert part in words, part
    assert f'<a href="/find?q={BATCH_ID}&amp;customer=acme">{BATCH_ID}</a>' in page.text
    assert 'value="order-1"' in page.text


async def test_dead_letters_lead_from_their_group_to_one_of_them() -> None:
    browser = Browser()
    ids = [browser.reject(f"m{number}") for number in range(51)]
    browser.reject("other", "globex")
    groups = await browser.get("/dead")
    assert "invalid acme 51" in text(groups)
    assert "invalid globex 1" in text(groups)
    assert "Invalid payload: redriving fails again; ask the customer to resubmit." in text(groups)
    assert '<a href="/dead/list?reason=invalid&amp;customer=acme">' in groups.text
    first = await browser.get("/dead/list?reason=invalid&customer=acme")
    assert "invalid of acme: 51, latest first" in text(first)
    assert "m50 is wrong" in text(first)
    assert "m0 is wrong" not in text(first)
    assert '<a rel="next" href="/dead/list?reason=invalid&amp;customer=acme&amp;page=2">' in first.text
    second = await browser.get("/dead/list?reason=invalid&customer=acme&page=2")
    assert ("m0 is wrong" in text(second), "Page 2 of 2" in text(second)) == (True, True)
    letter = await browser.get("/dead/letter", id=ids[0])
    for part in ("reason invalid: m0 is wrong", "message_id m0", '"label_spec"', "Find its submission"):
        assert part in text(letter), part


async def test_search_says_of_when_its_dead_letters_are() -> None:
    browser = Browser()
    assert "as of" not in text(await browser.get("/find", q="x"))
    await browser.get("/dead")
    assert "The ledger was asked now; dead letters are as of 20" in text(await browser.get("/find", q="x"))


async def test_page_without_dead_letters_says_so() -> None:
    browser = Browser()
    assert "There are no dead letters." in text(await browser.get("/dead"))
    assert "No dead letter matches" in text(await browser.get("/dead/list?reason=x&page=" + "9" * 30))
    gone = await browser.get("/dead/letter?id=x")
    assert (gone.status_code, "is no longer in ingest.dead" in text(gone)) == (404, True)


async def test_find_without_a_question_asks_nothing() -> None:
    browser = Browser()
    for parameters in ({}, {"q": ""}, {"q": "  "}):
        page = await browser.get("/find", **parameters)
        assert (page.status_code, browser.sought) == (200, [])
    words = text(await browser.get("/find", q="order-1"))
    assert browser.sought == [("order-1", None)]
    assert "order-1 was not found: it was never submitted or was refused" in words


async def test_key_with_spaces_is_found_and_one_copied_with_spaces_too() -> None:
    browser = Browser()
    await browser.get("/find", q=" order-1 ")
    assert browser.sought == [(" order-1 ", None), ("order-1", None)]
    browser.sought.clear()
    browser.findings = Findings(entries=[ENTRY])
    await browser.get("/find", q=" order-1 ")
    assert browser.sought == [(" order-1 ", None)]


async def test_too_long_question_and_too_long_search_are_refused() -> None:
    browser = Browser()
    assert (await browser.get("/find", q="x" * 301)).status_code == 400
    assert browser.sought == []
    browser.pause = 10
    page = await browser.get("/find", q="x")
    assert (page.status_code, "use `ingest find`" in text(page)) == (503, True)


async def test_hostile_texts_are_escaped_and_secrets_are_hidden() -> None:
    browser = Browser()
    await browser.history.sample()
    browser.findings = Findings(entries=[ENTRY], dead_letters=[LETTER], dead_letter_count=1, missing=[HOSTILE])
    url = "https://user:secret@host/?token=abc"
    letter = browser.reject(f"dead {HOSTILE}", f"c{HOSTILE}", body=f'{{"{HOSTILE}": "{url}"}}'.encode())
    for page in (
        await browser.get("/"),
        await browser.get("/find", q=HOSTILE, customer=f'"{HOSTILE}'),
        await browser.get("/find", q=f"a{HOSTILE}"),
        await browser.get("/dead"),
        await browser.get("/dead/list"),
        await browser.get("/dead/list", reason="invalid", customer=f"c{HOSTILE}"),
        await browser.get("/dead/letter", id=letter),
    ):
        assert "<script" not in page.text
        assert "&lt;script&gt;" in page.text
        assert "secret" not in page.text
        assert "token=abc" not in page.text
        shown = re.sub(r'value="[^"]*"', "", page.text)
        assert not {"\u202e", "\x1b"} & set(shown)


@pytest.mark.parametrize(
    "path", ["/", "/find?q=x", "/console.css", "/nothing", "/find?q=defect", "/dead", "/dead/list", "/customers"]
)
async def test_every_answer_forbids_scripts_frames_and_caches(path: str) -> None:
    browser = Browser()
    await browser.history.sample()
    page = await browser.get(path)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "http://" not in re.sub("http://10.20.30.40:9464|http://host:port", "", page.text)
    assert "https://" not in page.text


async def test_unknown_page_and_other_methods_are_answered_with_what_to_do() -> None:
    browser = Browser()
    page = await browser.get("/nothing")
    assert (page.status_code, "There is no such page." in text(page)) == (404, True)
    for method in ("POST", "DELETE", "PUT"):
        page = await browser.request(method, "/find")
        assert (page.status_code, "Use the links and forms of the pages." in text(page)) == (405, True)
    assert (await browser.request("HEAD", "/find")).status_code == 200


async def test_defect_is_answered_without_details() -> None:
    page = await Browser().get("/find", q="defect")
    assert page.status_code == 500
    assert "ZeroDivisionError" not in page.text
    assert "The log of the console says why." in text(page)


async def test_refused_request_is_told_what_to_do_and_shows_nothing() -> None:
    browser = Browser(access=Access("127.0.0.1", "correct horse battery"))
    await browser.history.sample()
    page = await browser.get("/")
    assert page.status_code == 401
    assert page.headers["www-authenticate"] == 'Basic realm="ingest console", charset="UTF-8"'
    assert "INGEST_CONSOLE_TOKEN" in text(page)
    assert "ingest.http" not in page.text
    allowed = await browser.request("GET", "/", authorization="Bearer correct horse battery")
    assert allowed.status_code == 200
    foreign = await Browser().request("GET", "/", host="evil.example")
    assert foreign.status_code == 403
