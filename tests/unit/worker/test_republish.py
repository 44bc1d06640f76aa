"""A direct repeat of a submission that was queued an hour ago and whose message is probably lost."""

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from ingest.admission import Request
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.dead_letters import dead_letter, read, redrive_blocker, resubmission
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.domain.topology import INGEST_DEAD
from ingest.store.sqlite import SqliteStore
from tests.support.deliveries import admitted_delivery, delivery, direct_delivery
from tests.support.fakes import Clock
from tests.support.tasks import TASK
from tests.unit.worker.test_outcomes import OutcomesHarness

CUSTOMER = Customer(cust_id="c", monthly_quota=100)
HOUR = 3600.0
BATCH: dict[str, Any] = {"tasks": [TASK | {"idempotency_key": "x"}, TASK]}
OTHER: dict[str, Any] = TASK | {"data_url": "https://a.example/other"}


@pytest.fixture
async def harness(tmp_path: Path, clock: Clock) -> AsyncIterator[OutcomesHarness]:
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    await store.save_customer(CUSTOMER)
    yield OutcomesHarness(store, clock=clock)
    await store.close()


async def queue(harness: OutcomesHarness, submission: Submission) -> Delivery:
    """Admit and publish a submission as the shim does; return its message."""
    decisions = await harness.admission.admit([Request(submission, CUSTOMER)])
    await harness.admission.queued(decisions)
    return admitted_delivery(Admitted(submission, decisions[0].entry.created_at, CUSTOMER.retention))


def task() -> Submission:
    return task_submission(TASK, "c", frozenset(), "k")


def ids_of(submission: Submission) -> set[str]:
    return {submission.id, *[task.task_id for task in submission.tasks]}


def accepted(event_ids: Iterable[str | None]) -> list[str]:
    """Return the ids of the tasks and batches in the ids of acceptance events; other events are left out."""
    return [str(event_id).partition(":")[0] for event_id in event_ids if ":accepted:" in str(event_id)]


async def test_direct_repeat_of_a_lost_task_accepts_it_and_is_reported_as_its_duplicate(
    harness: OutcomesHarness, clock: Clock
) -> None:
    """The next repeat is only a duplicate. Nothing is charged for either."""
    await queue(harness, task())
    clock.now += HOUR - 1
    (duplicate,) = await harness.attempt(direct_delivery("k"))
    assert ":duplicate:" in duplicate
    clock.now += 1
    published = await harness.attempt(direct_delivery("k"))
    assert (set(accepted(published)), duplicate in published) == (ids_of(task()), True)
    assert await harness.attempt(direct_delivery("k")) == [duplicate]
    assert harness.counted("ingest_accepted_tasks_total") == {"http": 1}
    assert harness.counted("ingest_submissions_total") == {"amqp,task,duplicate": 3}
    assert await harness.used() == 1


async def test_direct_repeat_of_a_lost_batch_expands_it(harness: OutcomesHarness, clock: Clock) -> None:
    submission = batch_submission(BATCH, "c", frozenset(), "b")
    await queue(harness, submission)
    clock.now += HOUR
    published = await harness.attempt(direct_delivery("b", BATCH))
    assert set(accepted(published)) == ids_of(submission)
    assert accepted(published[-1:]) == [submission.id]
    assert harness.counted("ingest_accepted_tasks_total") == {"http": 2}
    (duplicate,) = await harness.attempt(direct_delivery("b", BATCH))
    assert ":duplicate:" in duplicate


async def test_direct_batch_accepts_a_lost_item_with_its_own_tasks(harness: OutcomesHarness, clock: Clock) -> None:
    item = task_submission(TASK, "c", frozenset(), "x")
    await queue(harness, item)
    clock.now += HOUR
    await harness.attempt(direct_delivery("b", BATCH))
    assert item.id in accepted(message.message_id for message in harness.publisher.sent)
    assert (await harness.attempt(direct_delivery("x")))[0].startswith(f"{item.id}:duplicate:")
    assert await harness.used() == 2


async def test_message_that_was_not_lost_is_dropped_after_a_repeat(harness: OutcomesHarness, clock: Clock) -> None:
    late = await queue(harness, task())
    clock.now += HOUR
    await harness.attempt(direct_delivery("k"))
    assert await harness.attempt(late) == []
    assert late in harness.consumer.acked


async def test_repeat_waits_without_an_event_while_its_own_worker_accepts_the_message(
    harness: OutcomesHarness, clock: Clock
) -> None:
    """The message was only late: it is in the same micro-batch as the repeat."""
    late = await queue(harness, task())
    clock.now += HOUR
    repeat = direct_delivery("k")
    published = await harness.attempt(late, repeat)
    assert (len(published), accepted(published)) == (1, [task().id])
    assert (harness.unfinished.contended, harness.consumer.acked) == ([repeat], [late])
    (duplicate,) = await harness.attempt(repeat)
    assert ":duplicate:" in duplicate


async def test_repeat_that_cannot_publish_waits_and_accepts_later(harness: OutcomesHarness, clock: Clock) -> None:
    """Otherwise its next attempt would be taken for a plain duplicate, and the task would stay lost."""
    await queue(harness, task())
    clock.now += HOUR
    harness.publisher.outcome = PublishOutcome.UNKNOWN
    repeat = direct_delivery("k")
    await harness.attempt(repeat)
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    assert await harness.attempt(*harness.unavailable) == []
    assert harness.consumer.acked == []
    clock.now += 30
    assert accepted(await harness.attempt(repeat)) == [task().id]


async def test_repeat_waits_while_a_shim_publishes_the_task_again(harness: OutcomesHarness, clock: Clock) -> None:
    """A repeat with another body is a mismatch at once."""
    await queue(harness, task())
    clock.now += HOUR
    decisions = await harness.admission.admit([Request(task(), CUSTOMER)])
    assert await harness.attempt(direct_delivery("k")) == []
    assert harness.consumer.acked == []
    (mismatch,) = await harness.attempt(direct_delivery("k", OTHER))
    assert ":duplicate:" in mismatch
    await harness.admission.queued(decisions)
    (duplicate,) = await harness.attempt(direct_delivery("k"))
    assert ":duplicate:" in duplicate


async def test_submission_of_an_untrusted_shim_is_accepted_if_it_is_redriven_once_the_shim_is_trusted(
    harness: OutcomesHarness,
) -> None:
    """An earlier version dead-lettered such messages. The client was answered 202."""
    message = await queue(harness, task())
    untrusted = delivery(**{**_fields(message), "user_id": "shim-2"})
    error = InvalidSubmission(Reason.FORGED_ADMISSION, "type ingest.admitted.v1 is for the service's own users only")
    letter = dead_letter(untrusted, error, "2026-04-09T12:00:00Z")
    stored = delivery(
        body=letter.body,
        queue=INGEST_DEAD,
        routing_key=letter.routing_key,
        message_id=letter.message_id,
        user_id="shim",
        headers=letter.headers,
    )
    assert redrive_blocker(read(stored, frozenset({"shim"})), frozenset({"shim"})) is not None
    trusted = frozenset({"shim", "shim-2"})
    assert redrive_blocker(read(stored, trusted), trusted) is None
    redriven = resubmission(read(stored, trusted))
    fields = {"body": redriven.body, "routing_key": redriven.routing_key, "message_id": redriven.message_id}
    published = await harness.attempt(delivery(**fields, type=redriven.type, user_id="shim"))
    assert accepted(published) == [task().id]


def _fields(message: Delivery) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}
