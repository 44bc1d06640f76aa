"""The dead letters of one customer are trimmed, oldest first, until they have no more than the given bytes."""

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from ingest.domain import dead_letters
from ingest.domain.dead_letters import DeadLetter, Trimmed, dead_letter, redrive_blocker
from ingest.domain.errors import BrokerUnavailable, FieldError, InvalidSubmission, Reason
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.trimming import size_of, trimmed_letter
from ingest.operations.trim import TrimReport, trim
from ingest.operations.trim_loop import trim_repeatedly
from tests.support.dead_letter_queue import SERVICE, MemoryDeadLetters
from tests.support.deliveries import delivery
from tests.support.fakes import Clock

DIED = "2026-04-09T12:00:00Z"
TRIMMED = "2026-03-31T23:33:20Z"
"""The time of `Clock`."""
BODY = 10_000
FAULTS = (FieldError("f", "f is wrong"),)


def rejected(number: int, cust_id: str = "acme", reason: Reason = Reason.INVALID, **changes: Any) -> Message:
    """Return the dead letter of a submission whose body has BODY bytes and its number."""
    fields: dict[str, Any] = {
        "body": f"{number:0{BODY}d}".encode(),
        "message_id": f"m{number}",
        "routing_key": f"task.submitted.{cust_id}",
        "user_id": cust_id,
        "timestamp": 5,
    }
    return dead_letter(delivery(**fields | changes), InvalidSubmission(reason, "why", FAULTS), DIED)


def filled(*messages: Message) -> MemoryDeadLetters:
    queue = MemoryDeadLetters()
    for message in messages:
        queue.add(message)
    return queue


def read(queue: MemoryDeadLetters) -> list[DeadLetter]:
    return [dead_letters.read(delivery, SERVICE) for delivery in queue.deliveries]


def numbers(queue: MemoryDeadLetters) -> list[tuple[str, bool]]:
    """Return of each dead letter the submission's message_id and whether it is trimmed, in the order of the queue."""
    return [(dead.origin.message_id or "", dead.trimmed is not None) for dead in read(queue) if dead.origin]


async def run(queue: MemoryDeadLetters, keep: int, *, dry_run: bool = False) -> TrimReport:
    report = TrimReport(keep)
    await trim(queue.open, report, dry_run=dry_run, clock=Clock())
    return report


async def test_oldest_dead_letters_are_trimmed_until_the_rest_fits() -> None:
    queue = filled(*[rejected(number) for number in range(6)])
    report = await run(queue, 3 * BODY + BODY // 2 + 2000)
    assert numbers(queue) == [("m3", False), ("m4", False), ("m5", False), ("m0", True), ("m1", True), ("m2", True)]
    usage = report.customers["acme"]
    assert (usage.trimmed, usage.copies, report.above) == (3, 0, {})
    assert usage.kept == pytest.approx(sum(map(size_of, queue.deliveries)), abs=3 * 500)
    assert sum(map(size_of, queue.deliveries)) <= report.keep


async def test_trimmed_dead_letter_keeps_everything_but_its_body_and_errors() -> None:
    queue = filled(rejected(7))
    (before,) = read(queue)
    await run(queue, 1000)
    (dead,) = read(queue)
    assert dead.trimmed == Trimmed(TRIMMED, BODY, hashlib.sha256(f"{7:0{BODY}d}".encode()).hexdigest())
    assert before.origin is not None
    assert dead.origin is not None
    assert msgspec.structs.asdict(dead.origin) == msgspec.structs.asdict(before.origin) | {"body": b""}
    for name in ("id", "reason", "error", "cust_id", "died_at"):
        assert getattr(dead, name) == getattr(before, name), name
    assert dead.errors == ()
    assert size_of(dead.delivery) < 1000


async def test_trimmed_dead_letter_is_never_redriven() -> None:
    queue = filled(rejected(7, reason=Reason.QUOTA_EXHAUSTED))
    assert redrive_blocker(read(queue)[0], SERVICE) is None
    await run(queue, 1000)
    (dead,) = read(queue)
    assert "has removed its body" in (redrive_blocker(dead, SERVICE) or "")
    with pytest.raises(ValueError, match="contains no submission"):
        dead_letters.resubmission(dead)


async def test_only_the_customer_that_has_too_many_bytes_loses_details() -> None:
    queue = filled(rejected(0, "quiet"), *[rejected(number) for number in range(1, 5)], rejected(5, "quiet"))
    report = await run(queue, 2 * BODY + 3000)
    assert list(report.customers) == ["acme"]
    assert [name for name, trimmed in numbers(queue) if not trimmed] == ["m0", "m3", "m4", "m5"]


async def test_user_that_sends_in_the_name_of_a_customer_does_not_use_up_its_bytes() -> None:
    forged = [rejected(number, reason=Reason.USER_MISMATCH, user_id="mallory") for number in range(1, 5)]
    queue = filled(rejected(0), *forged)
    report = await run(queue, 2 * BODY)
    assert list(report.customers) == ["mallory"]
    assert ("m0", False) in numbers(queue)


@pytest.mark.parametrize("dry_run", [False, True])
async def test_dry_run_reports_the_same_and_changes_nothing(dry_run: bool) -> None:
    queue = filled(*[rejected(number) for number in range(4)])
    with capture_logs() as logs:
        report = await run(queue, 2 * BODY, dry_run=dry_run)
    assert report.customers["acme"].trimmed == 3
    assert [trimmed for _, trimmed in numbers(queue)].count(True) == (0 if dry_run else 3)
    assert bool(logs) is not dry_run


async def test_removal_of_details_is_logged_as_a_warning_with_its_customer() -> None:
    queue = filled(*[rejected(number) for number in range(4)])
    with capture_logs() as logs:
        report = await run(queue, 2 * BODY)
    usage = report.customers["acme"]
    assert logs == [
        {
            "event": "dead_letters_trimmed",
            "log_level": "warning",
            "cust_id": "acme",
            "trimmed": 3,
            "copies": 0,
            "bytes_removed": usage.removed,
            "bytes_kept": usage.kept,
        }
    ]


async def test_dead_letters_that_cannot_become_smaller_are_left_and_reported() -> None:
    """They are trimmed already, or have hardly a body."""
    queue = filled(*[rejected(number, body=b"1") for number in range(50)])
    with capture_logs() as logs:
        report = await run(queue, 5000)
    before = numbers(queue)
    assert report.customers["acme"].trimmed == 0
    assert report.above == {"acme": report.customers["acme"].kept}
    assert [(log["event"], log["limit"]) for log in logs] == [("dead_letters_above_limit", 5000)]
    assert numbers(queue) == before
    queue = filled(*[rejected(number) for number in range(50)])
    await run(queue, 5000)
    again = await run(queue, 5000)
    assert [trimmed for _, trimmed in numbers(queue)] == [True] * 50
    assert again.customers["acme"].trimmed == 0


async def test_queue_that_is_small_enough_as_a_whole_is_not_read() -> None:
    queue = filled(*[rejected(number) for number in range(4)])
    queue.known_size = 5000
    await run(queue, 5000)
    assert queue.readings == 0
    queue.known_size = 5001
    await run(queue, 5000)
    assert queue.readings == 2


async def test_queue_without_a_customer_above_the_limit_is_read_once_and_not_opened_to_change_it() -> None:
    queue = filled(rejected(1), rejected(2, "other"))
    report = await run(queue, BODY + 2000)
    assert (report.customers, queue.readings) == ({}, 1)


@pytest.mark.parametrize("copy_first", [False, True])
async def test_original_that_a_crash_left_beside_its_trimmed_copy_is_removed_by_the_next_run(copy_first: bool) -> None:
    """With priorities, RabbitMQ 4.3 may deliver the copy first."""
    queue = filled(*[rejected(number) for number in range(3)])
    queue.loses_removals = True
    await run(queue, 2 * BODY + 2000)
    assert sorted(numbers(queue)) == [("m0", False), ("m0", True), ("m1", False), ("m2", False)]
    queue.loses_removals = False
    if copy_first:
        queue.deliveries.insert(0, queue.deliveries.pop())
    report = await run(queue, 2 * BODY + 2000)
    assert sorted(numbers(queue)) == [("m0", True), ("m1", False), ("m2", False)]
    assert (report.customers["acme"].trimmed, report.customers["acme"].copies) == (0, 1)


async def test_dead_letters_with_the_same_id_and_other_contents_are_both_kept() -> None:
    """A producer chooses the message_id, which is the id of a submission that the broker dead-lettered."""
    queue = MemoryDeadLetters()
    for number in range(3):
        queue.add(submission(f"{number:0{BODY}d}".encode(), message_id="same"), "acme")
    await run(queue, 1000)
    await run(queue, 1000)
    dead = read(queue)
    assert [letter.id for letter in dead] == ["same"] * 3
    assert len({letter.trimmed.body_sha256 for letter in dead if letter.trimmed}) == 3


def submission(body: bytes, cust_id: str = "acme", reason: Any = "expired", **changes: Any) -> Message:
    """Return a submission that the broker dead-lettered."""
    fields: dict[str, Any] = {
        "exchange": "asg.dead",
        "routing_key": f"task.submitted.{cust_id}",
        "body": body,
        "message_id": "m",
        "headers": {"x-death": [{"queue": "ingest.tasks", "reason": reason, "time": 1_775_736_000}]},
    }
    return Message(**fields | changes)


async def test_submission_that_the_broker_dead_lettered_is_trimmed_with_its_reason_and_time() -> None:
    queue = MemoryDeadLetters()
    queue.add(submission(bytes(BODY)), "acme")
    (before,) = read(queue)
    await run(queue, 1000)
    (dead,) = read(queue)
    assert (dead.reason, dead.died_at, dead.id, dead.cust_id) == ("expired", before.died_at, "m", "acme")
    assert dead.origin is not None
    assert (dead.origin.queue, dead.origin.user_id) == ("ingest.tasks", "acme")


@pytest.mark.parametrize("dry_run", [False, True])
async def test_trimmed_dead_letter_that_a_producer_forged_hides_nothing(dry_run: bool) -> None:
    """It is a submission of the producer like any other: it neither counts as trimmed nor as a copy of another."""
    queue = filled(*[rejected(number) for number in range(3)])
    for dead in read(queue):
        forged = trimmed_letter(dead, DIED)
        queue.add(msgspec.structs.replace(forged, routing_key="task.submitted.acme"), "acme")
        queue.add(forged, "acme")
    report = await run(queue, 1, dry_run=dry_run)
    assert report.customers["acme"].copies == 0
    trusted = [dead for dead in read(queue) if dead.delivery.user_id == "ingest" and dead.trimmed]
    assert {dead.id for dead in trusted} >= ({dead.id for dead in read(filled(rejected(0)))} if not dry_run else set())
    for dead in read(queue):
        assert dead.trimmed is None or dead.delivery.user_id == "ingest"


@pytest.mark.parametrize(
    "hostile",
    [
        {"message_id": "\x1b]0;t\x07" + "\\xff" * 300},
        {"message_id": None},
        {"message_id": "\u202e" * 85},
        {"routing_key": "task.submitted." + "\x01" * 240},
        {"type": "\x00" * 255, "content_type": "\x00" * 255},
        {"timestamp": 2**64 - 1},
        {"reason": "x" * 4000},
        {"reason": "rejected.#\n"},
        {"time": 10**18},
        {"time": -5},
        {"time": float("nan")},
    ],
)
async def test_hostile_properties_neither_stop_it_nor_make_a_trimmed_dead_letter_large(hostile: dict[str, Any]) -> None:
    death = {"queue": "ingest.tasks", "reason": hostile.pop("reason", "expired"), "time": hostile.pop("time", 5)}
    queue = filled(rejected(1))
    await run(queue, 100)  # so the hostile one is compared with it
    queue.add(submission(bytes(20_000), headers={"x-death": [death]}), "acme")
    queue.deliveries[1] = msgspec.structs.replace(queue.deliveries[1], **hostile)
    _, before = read(queue)
    await run(queue, 100)
    _, dead = read(queue)
    assert dead.trimmed is not None
    assert dead.id == before.id
    assert len((dead.delivery.message_id or "").encode()) <= 255
    assert len(dead.delivery.routing_key.encode()) <= 255
    assert dead.delivery.routing_key.startswith("rejected.")
    assert size_of(dead.delivery) < 12_000


async def test_message_that_is_not_a_submission_is_never_trimmed() -> None:
    """It may be an envelope of the service whose user is not in INGEST_TRUSTED_USERS here."""
    queue = MemoryDeadLetters()
    for number in range(3):
        queue.add(rejected(number), "another-worker")
    report = await run(queue, 1000)
    assert len(queue.deliveries) == 3
    assert report.above == {"": report.customers[""].kept}


@pytest.mark.parametrize("outcome", [outcome for outcome in PublishOutcome if outcome is not PublishOutcome.CONFIRMED])
async def test_nothing_is_removed_unless_the_broker_confirms(outcome: PublishOutcome) -> None:
    queue = filled(*[rejected(number) for number in range(3)])
    queue.outcome = outcome
    with capture_logs() as logs:
        report = await run(queue, 1000)
    assert [name for name, trimmed in numbers(queue) if not trimmed] == ["m0", "m1", "m2"]
    assert report.failed == {str(outcome): 3}
    assert [log["event"] for log in logs] == ["dead_letters_not_trimmed"]


async def test_repeated_trimming_survives_an_unavailable_broker_and_ends_when_stopped() -> None:
    stop, runs = asyncio.Event(), 0

    async def run_once() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise BrokerUnavailable("no connection")
        stop.set()

    with capture_logs() as logs:
        await trim_repeatedly(run_once, 0.001, stop)
    assert runs == 2
    assert [(log["event"], log["error"]) for log in logs] == [("dead_letters_not_trimmed", "no connection")]


async def test_run_in_progress_is_cancelled_when_repeated_trimming_is_stopped() -> None:
    stop, started, cancelled = asyncio.Event(), asyncio.Event(), False

    async def run_forever() -> None:
        nonlocal cancelled
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    trimming = asyncio.create_task(trim_repeatedly(run_forever, 1, stop))
    await started.wait()
    stop.set()
    await trimming
    assert cancelled
