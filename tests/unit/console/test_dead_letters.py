"""What the console keeps of the dead letters: when it reads them, and within which bounds."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from ingest.backends import DeadLetterAccess
from ingest.console import snapshot as snapshots
from ingest.console.dead_letters import MIN_AGE, DeadLetters
from ingest.console.filters import filter_of
from ingest.console.letter_facts import details_facts
from ingest.console.snapshot import Snapshot, ordered
from ingest.domain.dead_letters import dead_letter, read
from ingest.domain.errors import BrokerUnavailable, FieldError, InvalidSubmission, Reason
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.overview import QueueState
from ingest.domain.trimming import trimmed_letter
from ingest.operations.dead_letters import details
from ingest.operations.dead_reasons import FEW
from ingest.operations.find import MAX_DEAD_LETTERS, FoundDeadLetter
from tests.support.dead_letter_queue import SERVICE, MemoryDeadLetters
from tests.support.deliveries import direct_delivery
from tests.support.fakes import Clock
from tests.support.tasks import TASK

DIED = "2026-04-09T12:00:00Z"


def add(
    queue: MemoryDeadLetters, message_id: str, cust_id: str = "acme", reason: Reason = Reason.INVALID, **changes: Any
) -> None:
    error = InvalidSubmission(reason, f"{message_id} is wrong", (FieldError("f", "f is wrong"),))
    queue.add(dead_letter(direct_delivery(message_id, cust_id=cust_id, **changes), error, DIED))


class Harness:
    """Dead letters of a queue that can be unavailable or slow."""

    def __init__(self) -> None:
        self.queue = MemoryDeadLetters()
        self.clock, self.monotonic = Clock(), Clock()
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.letters = DeadLetters(self.open, self.clock, self.monotonic)

    def open(self, *, change: bool) -> AbstractAsyncContextManager[DeadLetterAccess]:
        assert not change
        if self.failure is not None:
            raise self.failure
        return self._opened()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[DeadLetterAccess]:
        await self.gate.wait()
        async with self.queue.open(change=False) as access:
            yield access

    async def look(self) -> Snapshot:
        snapshot = await self.letters.look(10)
        assert snapshot is not None
        return snapshot


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = Harness()
    yield harness
    await harness.letters.close()


def kept(snapshot: Snapshot, letter: FoundDeadLetter) -> dict[str, Any]:
    """Return the details of a dead letter; empty if they are not kept."""
    row = snapshot.row(letter.id)
    assert row is not None
    return row.details or {}


async def test_groups_count_reasons_and_customers_and_say_what_to_do(harness: Harness) -> None:
    for number in range(3):
        add(harness.queue, f"a{number}")
    add(harness.queue, "b", "globex", Reason.QUOTA_EXHAUSTED)
    add(harness.queue, "c", "acme", Reason.QUOTA_EXHAUSTED)
    snapshot = await harness.look()
    groups = ordered(snapshot.groups.values())
    assert [(group.reason, group.cust_id, group.count) for group in groups] == [
        ("invalid", "acme", 3),
        ("quota_exhausted", "acme", 1),
        ("quota_exhausted", "globex", 1),
    ]
    assert (snapshot.count, snapshot.at) == (5, harness.clock())
    assert groups[1].what_to_do.startswith("Redrive it next month")
    assert groups[0].oldest == groups[0].newest == 1_775_736_000.0


async def test_rows_are_latest_first_and_can_be_selected(harness: Harness) -> None:
    for message_id, cust_id in (("a", "acme"), ("b", "globex"), ("c", "acme")):
        add(harness.queue, message_id, cust_id)
    harness.clock.now = 1_775_736_000 + 7200
    snapshot = await harness.look()

    def names(**selection: str) -> list[str]:
        letters, count = snapshot.letters(filter_of(selection).selection(), limit=10)
        assert count == len(letters)
        return [letter.message_id for letter in letters]

    assert names() == ["c", "b", "a"]
    assert names(reason="invalid", customer="acme") == ["c", "a"]
    assert names(customer="globex") == ["b"]
    assert names(reason="expired") == []
    assert names(without_customer="1") == []
    assert names(older="1h") == ["c", "b", "a"]
    assert names(newer="1h", customer="acme") == []
    assert names(id=snapshot.letters(limit=1)[0][0].id) == ["c"]
    (second,), count = snapshot.letters(limit=1, offset=1)
    assert (second.message_id, count) == ("b", 3)


async def test_details_are_complete_and_shown_without_secrets(harness: Harness) -> None:
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    body_with_secrets = TASK | {"data_url": "https://user:secret@host/?token=abc"}
    delivery = direct_delivery("a", body_with_secrets, cust_id="acme", headers=headers)
    message = dead_letter(
        delivery, InvalidSubmission(Reason.INVALID, "a is wrong", (FieldError("f", "f is wrong"),)), DIED
    )
    harness.queue.add(msgspec.structs.replace(message, headers=message.headers | headers))
    snapshot = await harness.look()
    (letter,), _ = snapshot.letters(limit=10)
    row = snapshot.row(letter.id)
    assert row is not None
    assert row.found == letter
    assert snapshot.row("other") is None
    assert row.details is not None
    facts, body = details_facts(row.details)
    assert facts["reason"] == "invalid: a is wrong"
    assert facts["error 1"] == "f is wrong"
    assert (facts["redrive"], facts["trace id"]) == ("possible", "a" * 32)
    assert (facts["customer"], facts["message_id"], facts["died"]) == ("acme", "a", DIED)
    assert "body" not in facts
    assert json.loads(body)["type"] == TASK["type"]
    assert "secret" not in body
    assert "abc" not in body


async def test_letters_of_every_kind_have_facts(harness: Harness) -> None:
    add(harness.queue, "binary", body=b"\xff\xfe")
    add(harness.queue, "long", body=b"x" * (snapshots._LONGEST_BODY + 1))
    add(harness.queue, "trimmed")
    harness.queue.add(trimmed_letter(read(harness.queue.deliveries.pop(), SERVICE), DIED))
    foreign = msgspec.structs.replace(
        harness.queue.deliveries[0], routing_key="elsewhere", user_id="other", message_id="x"
    )
    harness.queue.deliveries.append(foreign)
    snapshot = await harness.look()
    shown = [details_facts(kept(snapshot, letter)) for letter in reversed(snapshot.letters(limit=10)[0])]
    assert shown[0][1] == "//4="
    assert shown[1][1].endswith("x\n… the rest is not kept here: `ingest dlq export` has it")
    assert len(shown[1][1]) < snapshots._LONGEST_BODY + 100
    assert (shown[2][1], shown[2][0]["trimmed"]) == ("", f"at {DIED}, the body had {len(json.dumps(TASK))} bytes")
    assert shown[2][0]["redrive"].startswith("not possible: ")
    assert shown[3][0]["reason"].startswith("unknown: not a submission")


async def test_queue_is_read_again_only_when_it_is_shown_and_the_last_reading_is_old(harness: Harness) -> None:
    await harness.look()
    add(harness.queue, "a")
    assert (await harness.look()).count == 0
    harness.monotonic.now += MIN_AGE
    assert (await harness.look()).count == 1
    assert harness.queue.readings == 2


async def test_page_does_not_wait_for_a_long_reading(harness: Harness) -> None:
    """It shows what was read before. Only one reading is in progress."""
    harness.gate.clear()
    assert await harness.letters.look(0) is None
    assert harness.letters.is_reading
    harness.gate.set()
    first = await harness.look()
    assert not harness.letters.is_reading
    harness.monotonic.now += MIN_AGE
    harness.gate.clear()
    add(harness.queue, "a")
    assert await harness.letters.look(0) is first
    assert await harness.letters.look(0) is first
    harness.gate.set()
    assert (await harness.look()).count == 1
    assert harness.queue.readings == 2


async def test_search_finds_the_latest_by_every_name(harness: Harness) -> None:
    for number in range(MAX_DEAD_LETTERS + 2):
        add(harness.queue, "m", body=TASK | {"idempotency_key": "k", "n": number})
    add(harness.queue, "m", "globex")
    everything = await harness.letters.search({"k", "m", keyed_id(SubmissionKind.TASK, "acme", "k")}, None)
    assert (everything.count, len(everything.dead_letters)) == (MAX_DEAD_LETTERS + 3, MAX_DEAD_LETTERS)
    assert everything.dead_letters[-1].cust_id == "globex"
    own = await harness.letters.search({"m"}, "globex")
    assert [letter.cust_id for letter in own.dead_letters] == ["globex"]
    assert (await harness.letters.search({"other"}, None)).count == 0


async def test_search_says_if_nothing_could_be_read(harness: Harness) -> None:
    harness.failure = BrokerUnavailable("no connection")
    with pytest.raises(BrokerUnavailable, match="no connection"):
        await harness.letters.search({"m"}, None)


async def test_failure_is_said_and_the_last_reading_stays(harness: Harness) -> None:
    add(harness.queue, "a")
    first = await harness.look()
    harness.failure = BrokerUnavailable("no connection")
    harness.monotonic.now += MIN_AGE
    assert await harness.look() is first
    assert harness.letters.failure == "no connection"
    assert kept(first, first.letters(limit=1)[0][0])
    harness.failure = None
    harness.monotonic.now += MIN_AGE
    assert await harness.look() is not first
    assert harness.letters.failure == ""


async def test_odd_answer_of_a_server_is_a_failure_like_others(harness: Harness) -> None:
    harness.failure = KeyError("name")
    with capture_logs() as logs:
        assert await harness.letters.look(10) is None
    assert harness.letters.failure == "KeyError, see the log of the console"
    assert [entry["event"] for entry in logs] == ["dead_letters_not_read"]


async def test_age_counts_from_the_end_of_a_reading(harness: Harness) -> None:
    """Otherwise a queue that takes long would be held all the time."""
    harness.gate.clear()
    await harness.letters.look(0)
    harness.monotonic.now += 2 * MIN_AGE
    harness.gate.set()
    await harness.look()
    harness.monotonic.now += MIN_AGE - 1
    await harness.look()
    assert harness.queue.readings == 1


async def test_search_does_not_wait_for_a_later_reading(harness: Harness) -> None:
    add(harness.queue, "m")
    await harness.look()
    harness.monotonic.now += MIN_AGE
    harness.gate.clear()
    async with asyncio.timeout(5):
        assert (await harness.letters.search({"m"}, None)).count == 1


async def test_overview_shows_what_the_pages_show(harness: Harness) -> None:
    """Only few are read without being asked for; the note says if there are more or fewer now."""

    async def reasons(ready: int, consumers: int = 0) -> tuple[list[tuple[str, int, float | None]] | None, str]:
        dead, note = await harness.letters.read(QueueState(name="ingest.dead", ready=ready, consumers=consumers))
        return None if dead is None else [(reason.reason, reason.count, reason.oldest) for reason in dead], note

    harness.clock.now = 1_775_736_000 + 60
    for cust_id in ("acme", "globex"):
        add(harness.queue, "a", cust_id)
    add(harness.queue, "b", reason=Reason.TOO_LARGE)
    assert await harness.letters.read(None) == (None, "unknown")
    assert await reasons(0) == ([], "")
    assert await reasons(FEW + 1) == (None, "2,001: open the dead letters to read them")
    assert await reasons(3, consumers=1) == (None, "3: open the dead letters to read them")
    expected = [("invalid", 2, 60.0), ("too_large", 1, 60.0)]
    await reasons(3)
    await harness.look()
    assert await reasons(3) == (expected, "")
    assert await reasons(5) == (expected, "5 now")
    assert harness.queue.readings == 1


async def test_close_ends_a_reading(harness: Harness) -> None:
    harness.gate.clear()
    await harness.letters.look(0)
    await harness.letters.close()
    assert not harness.letters.is_reading


async def test_disk_is_bounded_and_everything_is_counted(harness: Harness) -> None:
    """The latest are kept. One for which there is no room has no details."""
    for number in range(25):
        add(harness.queue, f"m{number:02}")
    letters = [read(delivery, SERVICE) for delivery in harness.queue.deliveries]
    size = len(msgspec.json.encode(details(letters[0]) | {"remedy": "x" * 80, "blocker": None}))
    snapshot = Snapshot(0, max_rows=10, max_bytes=8 * size)
    for dead in letters:
        snapshot.add(dead, SERVICE)
    found, count = snapshot.letters(limit=100)
    assert (snapshot.count, count) == (25, 10)
    assert [letter.message_id for letter in found] == [f"m{number:02}" for number in range(24, 14, -1)]
    with_details = [bool(kept(snapshot, letter)) for letter in found]
    assert True in with_details
    assert False in with_details
    assert snapshot.matches({"m00"}, None).count == 0
    assert snapshot.matches({"m24"}, None).count == 1
    snapshot.close()


async def test_very_many_groups_are_counted_together(harness: Harness) -> None:
    """A producer may choose the customer in its routing keys, if its permissions are wrong."""
    for number in range(6):
        add(harness.queue, "m", f"c{number}")
    snapshot = Snapshot(0, max_rows=10, max_bytes=10_000, max_groups=3)
    for delivery in harness.queue.deliveries:
        snapshot.add(read(delivery, SERVICE), SERVICE)
    assert [group.count for group in snapshot.groups.values()] == [1, 1, 1, 3]
    assert ("", "") in snapshot.groups
    snapshot.close()
