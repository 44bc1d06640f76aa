"""Bundles in `ingest.dead`: each of their submissions is a dead letter of its own."""

import tempfile
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.broker.bundles.dead_letters import UnbundledDeadLetters
from ingest.domain import admitted, bundles
from ingest.domain.addresses import with_first_queue
from ingest.domain.dead_letters import DeadLetter, Origin, read, resubmission
from ingest.domain.errors import ConfigurationError
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Publisher
from ingest.domain.topology import DEAD, SUBMISSIONS
from tests.support.dead_letter_queue import SERVICE, MemoryDeadLetters

DIED_AT = 1_775_736_000
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def task(cust_id: str, number: int) -> Message:
    return Message(
        exchange=SUBMISSIONS,
        routing_key=f"http.0.task.submitted.{cust_id}",
        body=b'{"number":%d}' % number,
        message_id=f"tsk_{number}",
        type=admitted.TYPE,
        timestamp=1_775_000_000,
        headers={"traceparent": TRACE} if number == 1 else {},
        may_be_bundled=True,
    )


def expired(*tasks: Message) -> Message:
    """Return a bundle as the broker dead-letters it."""
    death: dict[str, Any] = {"x-death": [{"queue": "ingest.http.0", "reason": "expired", "time": DIED_AT}]}
    bundle = bundles.pack(tasks)
    return Message(
        exchange=DEAD,
        routing_key=bundle.routing_key,
        body=bundle.body,
        message_id=bundle.message_id,
        type=bundle.type,
        headers=death,
    )


class Harness:
    """`ingest.dead` with one bundle of three submissions, and a single one."""

    def __init__(self) -> None:
        self.queue = MemoryDeadLetters()
        self.queue.add(expired(task("acme", 0), task("acme", 1), task("other", 2)))
        self.queue.add(task("acme", 3))

    async def publisher(self) -> Publisher:
        async with self.queue.open(change=True) as access:
            return await access.publisher()

    def open(self) -> UnbundledDeadLetters:
        return UnbundledDeadLetters(self.queue, SERVICE, self.publisher)

    async def letters(self) -> list[DeadLetter]:
        """Return all dead letters, as a new command sees them."""
        queue = self.open()
        letters = [read(one, SERVICE) async for deliveries in queue.browse() for one in deliveries]
        await queue.close()
        return letters


async def take(queue: UnbundledDeadLetters) -> list[Delivery]:
    return [delivery async for deliveries in queue.browse() for delivery in deliveries]


async def test_each_submission_of_a_bundle_is_a_dead_letter() -> None:
    letters = await Harness().letters()
    assert [letter.id for letter in letters] == ["tsk_0", "tsk_1", "tsk_2", "tsk_3"]
    assert [letter.cust_id for letter in letters] == ["acme", "acme", "other", "acme"]
    assert [letter.reason for letter in letters[:3]] == ["expired"] * 3
    assert [letter.died_at for letter in letters[:3]] == [DIED_AT] * 3
    again = resubmission(letters[1])
    assert (again.routing_key, again.type) == ("http.0.task.submitted.acme", admitted.TYPE)
    assert (again.body, again.message_id, again.headers["traceparent"]) == (b'{"number":1}', "tsk_1", TRACE)


async def test_bundle_is_removed_with_the_last_of_its_submissions() -> None:
    harness = Harness()
    queue = harness.open()
    first, second, third, single = await take(queue)
    await queue.remove([first, second])
    assert len(harness.queue.deliveries) == 2
    await queue.remove([third, single])
    assert harness.queue.deliveries == []
    await queue.close()


async def test_what_was_not_removed_of_a_bundle_is_put_back_unchanged() -> None:
    harness = Harness()
    before = await harness.letters()
    queue = harness.open()
    first, _, third, _ = await take(queue)
    await queue.remove([first, third])
    await queue.close()
    kept, single = sorted(await harness.letters(), key=lambda letter: letter.id)
    assert (kept.id, kept.cust_id, kept.reason) == ("tsk_1", "acme", "expired")
    assert (kept.error, kept.died_at) == (before[1].error, DIED_AT)
    for name in Origin.__struct_fields__:
        assert getattr(kept.origin, name) == getattr(before[1].origin, name)
    assert resubmission(kept) == resubmission(before[1])
    assert single.id == "tsk_3"


async def test_if_the_rest_cannot_be_put_back_all_of_the_bundle_stays() -> None:
    """What was submitted again is submitted twice, which adds nothing."""
    harness = Harness()
    harness.queue.outcome = PublishOutcome.UNSENT
    queue = harness.open()
    first, *_ = await take(queue)
    await queue.remove([first])
    with capture_logs() as logs:
        await queue.close()
    assert [letter.id for letter in await harness.letters()] == ["tsk_0", "tsk_1", "tsk_2", "tsk_3"]
    assert [log["event"] for log in logs] == ["dead_bundles_kept"]


async def test_bundles_need_room_only_to_change_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, there may be no room for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    harness = Harness()
    reading = UnbundledDeadLetters(harness.queue, SERVICE, None)
    assert len(await take(reading)) == 4
    await reading.close()
    changing = harness.open()
    with pytest.raises(ConfigurationError, match="set TMPDIR to a directory with more space"):
        await take(changing)
    await changing.close()


@pytest.mark.parametrize(("queue", "first"), [("http.3", "http.0"), ("heavy.1", "heavy.0"), ("http.bulk", "http.bulk")])
def test_submission_of_a_queue_that_may_be_gone_is_submitted_to_the_first_of_its_class(queue: str, first: str) -> None:
    assert with_first_queue(f"{queue}.task.submitted.c") == f"{first}.task.submitted.c"
    assert with_first_queue("task.submitted.c") == "task.submitted.c"


async def test_bundle_of_another_user_stays_one_message() -> None:
    """A producer cannot make dead letters of other customers, which an operator would submit in the service's name."""
    harness = Harness()
    harness.queue.deliveries.clear()
    harness.queue.add(expired(task("acme", 0), task("other", 1)), "mallory")
    (letter,) = await harness.letters()
    assert (letter.cust_id, letter.origin) == ("", None)
