"""The events that `ingest dev` remembers for its console."""

from ingest.domain import events
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.ledger import submission_entry
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.submissions import batch_submission, task_submission
from ingest.domain.topology import DEAD
from ingest.telemetry.recent_events import MAX_BODY, MAX_EVENTS, RecentEvents, RecordedPublisher
from tests.support.fakes import ScriptedPublisher
from tests.support.tasks import TASK

CREATED_AT = 1_775_736_000_000
SINGLE = task_submission(TASK, "dev", frozenset(), "k1")
REJECTED = InvalidSubmission(Reason.QUOTA_EXHAUSTED, "quota exhausted")


def accepted(index: int = 0) -> Message:
    return events.task_accepted(SINGLE.tasks[0], "dev", CREATED_AT, ("bat_1", index), key=None)


def rejected(message_id: str) -> Message:
    return events.rejected("dev", message_id, CREATED_AT, REJECTED, "digest")


async def recorded(*messages: Message, outcome: PublishOutcome = PublishOutcome.CONFIRMED) -> RecentEvents:
    recent = RecentEvents(lambda: 7.0)
    publisher = RecordedPublisher(ScriptedPublisher(outcome), recent)
    assert await publisher.publish(messages) == [outcome] * len(messages)
    return recent


async def test_events_are_remembered_newest_first_with_what_they_are_about() -> None:
    batch = batch_submission({"tasks": [TASK]}, "dev", frozenset(), "k2")
    messages = (
        accepted(),
        events.batch_accepted(batch, CREATED_AT, []),
        events.duplicate(submission_entry(SINGLE, CREATED_AT, 60), SINGLE, "m1"),
        rejected("m2"),
    )
    recent = await recorded(*messages)
    assert [(event.at, event.name, event.cust_id, event.ids, event.task_type) for event in recent.latest()] == [
        (7.0, "submission.rejected", "dev", ["m2"], ""),
        (7.0, "submission.duplicate", "dev", [SINGLE.id, "m1"], ""),
        (7.0, "batch.accepted", "dev", [batch.id], ""),
        (7.0, "task.accepted", "dev", [SINGLE.id, "bat_1"], TASK["type"]),
    ]
    assert [event.body for event in recent.latest()] == [message.body for message in reversed(messages)]


async def test_unconfirmed_events_and_other_messages_are_not_remembered() -> None:
    assert (await recorded(accepted(), outcome=PublishOutcome.UNKNOWN)).latest() == []
    other = Message(exchange=DEAD, routing_key="rejected.invalid", body=b"x", message_id="d")
    assert (await recorded(other)).latest() == []


async def test_only_the_latest_are_remembered_and_all_are_counted() -> None:
    recent = await recorded(*map(accepted, range(1000)))
    recent.add([rejected("last").body])
    latest = recent.latest()
    assert (len(latest), recent.count) == (MAX_EVENTS, 1001)
    assert [b'"batch_index":999' in (event.body or b"") for event in latest[:3]] == [False, True, False]
    assert latest[0].ids == ["last"]


def test_large_body_is_not_kept() -> None:
    recent = RecentEvents()
    body = rejected("m").body
    recent.add([body, body + b" " * MAX_BODY])
    large, small = recent.latest()
    assert (large.body, large.size, large.ids) == (None, len(body) + MAX_BODY, ["m"])
    assert small.body == body


def test_bodies_of_the_oldest_events_give_way_to_new_ones() -> None:
    body = rejected("m").body
    recent = RecentEvents(max_bytes=3 * len(body))
    for _ in range(10):
        recent.add([body])
    assert [event.body is not None for event in recent.latest()] == [True] * 3 + [False] * 7
    recent.add([body] * MAX_EVENTS)
    assert sum(len(event.body or b"") for event in recent.latest()) == 3 * len(body)
