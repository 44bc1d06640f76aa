"""Every message that the service publishes has a timestamp, so that RabbitMQ can report how old a queue's first is."""

from ingest.domain import events
from ingest.domain.admitted import Admitted, to_message
from ingest.domain.dead_letters import dead_letter
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.submissions import batch_submission, task_submission
from tests.support.deliveries import delivery
from tests.support.tasks import TASK

MOMENT = 1_775_735_999_250


def test_messages_to_the_workers_and_events_have_the_time_of_their_submission() -> None:
    task = task_submission(TASK, "acme", frozenset(), "k")
    batch = batch_submission({"tasks": [TASK]}, "acme", frozenset(), "b")
    messages = [
        to_message(Admitted(submission=task, created_at=MOMENT, retention=60)),
        events.task_accepted(task.tasks[0], "acme", MOMENT, key="k"),
        events.batch_accepted(batch, MOMENT, []),
        events.rejected("acme", "m", MOMENT, InvalidSubmission(Reason.INVALID, "no"), "0"),
    ]
    assert {message.timestamp for message in messages} == {MOMENT // 1000}


def test_dead_letter_has_the_time_of_its_rejection_and_keeps_that_of_the_submission() -> None:
    message = dead_letter(delivery(), InvalidSubmission(Reason.INVALID, "no"), "2026-04-09T11:59:59Z")
    assert message.timestamp == MOMENT // 1000
    assert b'"timestamp":null' in message.body
