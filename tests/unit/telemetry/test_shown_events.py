"""The lines that `ingest dev` prints for its events."""

from ingest.domain import events
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.ledger import submission_entry
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.submissions import batch_submission, task_submission
from ingest.domain.topology import DEAD
from ingest.telemetry.shown_events import MAX_LINES, ShownPublisher
from tests.support.fakes import ScriptedPublisher
from tests.support.tasks import TASK

CREATED_AT = 1_775_736_000_000


async def shown(*messages: Message, outcome: PublishOutcome = PublishOutcome.CONFIRMED) -> list[str]:
    lines: list[str] = []
    assert await ShownPublisher(ScriptedPublisher(outcome), lines.append).publish(messages) == [outcome] * len(messages)
    return lines


async def test_line_of_an_event_has_its_type_its_subject_and_its_customer() -> None:
    single = task_submission(TASK, "dev", frozenset(), "k1")
    batch = batch_submission({"tasks": [TASK]}, "dev", frozenset(), "k2")
    error = InvalidSubmission(Reason.QUOTA_EXHAUSTED, "quota exhausted")
    lines = await shown(
        events.task_accepted(single.tasks[0], "dev", CREATED_AT, None, key=None),
        events.batch_accepted(batch, CREATED_AT, []),
        events.duplicate(submission_entry(single, CREATED_AT, 60), single, "m1"),
        events.rejected("dev", "m2", CREATED_AT, error, "digest"),
    )
    assert lines == [
        f"task.accepted        {single.id}  dev",
        f"batch.accepted       {batch.id}  dev",
        f"submission.duplicate {single.id}  dev",
        "submission.rejected  m2  dev  quota_exhausted",
    ]


async def test_line_of_an_event_is_harmless_whatever_the_producer_sent() -> None:
    error = InvalidSubmission(Reason.QUOTA_EXHAUSTED, "quota exhausted")
    name = "m\x1b[2J\x9b\u202e\n https://h/?token=S3CRET"
    assert await shown(events.rejected("dev", name, CREATED_AT, error, "digest")) == [
        r"submission.rejected  m\x1b[2J\x9b\u202e\n https://h/?token=***  dev  quota_exhausted"
    ]


async def test_events_of_a_large_batch_are_counted() -> None:
    task = task_submission(TASK, "dev", frozenset(), "k1").tasks[0]
    batch = [events.task_accepted(task, "dev", CREATED_AT, ("bat_1", index), key="k1") for index in range(1000)]
    lines = await shown(*batch)
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "task.accepted        and 980 more"


async def test_unconfirmed_events_and_other_messages_are_not_shown() -> None:
    task = task_submission(TASK, "dev", frozenset(), "k1").tasks[0]
    event = events.task_accepted(task, "dev", CREATED_AT, None, key=None)
    assert await shown(event, outcome=PublishOutcome.UNKNOWN) == []
    assert await shown(Message(exchange=DEAD, routing_key="rejected.invalid", body=b"x", message_id="d")) == []
