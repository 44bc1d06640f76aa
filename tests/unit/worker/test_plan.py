"""The plan for one delivery, from what the ledger says about its submission."""

import json
import time
from typing import Any

import msgspec
import pytest

from ingest.domain.admitted import Admitted
from ingest.domain.dead_letters import TIME_HEADER
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.events import acceptance_id
from ingest.domain.ledger import Doubt, Entry, Phase, item_entries, submission_entry
from ingest.domain.messages import CLOUDEVENTS, Message
from ingest.domain.metrics import Outcome
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.worker.plan import (
    OutboundPlan,
    add_trace,
    ids_to_read,
    is_uncharged,
    plan_admitted,
    plan_rejection,
    released_entries,
)
from ingest.worker.rejections import Rejection
from tests.support.deliveries import admitted_delivery, delivery
from tests.support.tasks import TASK

CREATED_AT = 1_775_000_000_123
WEEK = 604_800
KEYED = TASK | {"idempotency_key": "x"}
SINGLE = task_submission(KEYED, "c", frozenset())
BATCH = batch_submission({"tasks": [TASK, KEYED, KEYED, TASK | {"idempotency_key": "y"}]}, "c", frozenset(), "b")


def admitted(submission: Submission, **changes: Any) -> Admitted:
    return msgspec.structs.replace(Admitted(submission, CREATED_AT, WEEK), **changes)


def stored_entries(submission: Submission, **changes: Any) -> list[Entry]:
    """The entries of a submission that an attempt has claimed at another time than its message says."""
    created_at = CREATED_AT + 5000
    entries = [submission_entry(submission, created_at, WEEK)]
    if submission is BATCH:
        entries += item_entries(submission, created_at, WEEK)
    return [msgspec.structs.replace(entry, generation=1, **changes) for entry in entries]


def plan(message: Admitted, entries: list[Entry | None]) -> OutboundPlan:
    planned = plan_admitted(admitted_delivery(message), message, entries)
    assert planned is not None
    return planned


def ids(messages: list[Message]) -> list[str]:
    return [message.message_id for message in messages]


def test_entries_of_a_task_and_of_a_batch_are_read_once_each() -> None:
    """Also if a task has a key, or two items have the same one."""
    assert ids_to_read(SINGLE) == [SINGLE.id]
    assert ids_to_read(BATCH) == [BATCH.id, BATCH.tasks[1].task_id, BATCH.tasks[3].task_id]


def test_task_has_one_event_and_one_entry_to_settle() -> None:
    """Both are as the ledger says."""
    (entry,) = stored_entries(SINGLE)
    planned = plan(admitted(SINGLE), [entry])
    assert ids(planned.messages) == [acceptance_id(SINGLE.id, entry.created_at)]
    assert (planned.final_message, list(planned.entries), planned.decision) == (None, [entry], None)
    assert (planned.outcome, planned.reason, planned.mismatch) == (Outcome.ACCEPTED, "", False)


def test_task_whose_entry_was_lost_is_accepted_as_its_message_says() -> None:
    planned = plan(admitted(SINGLE), [None])
    assert ids(planned.messages) == [acceptance_id(SINGLE.id, CREATED_AT)]
    assert list(planned.entries) == [submission_entry(SINGLE, CREATED_AT, WEEK)]


@pytest.mark.parametrize("submission", [SINGLE, BATCH], ids=["task", "batch"])
@pytest.mark.parametrize(
    "change",
    [{"phase": Phase.ACCEPTED}, {"fingerprint": b"other", "created_at": CREATED_AT}],
    ids=["accepted", "taken over"],
)
def test_submission_that_is_accepted_or_whose_key_another_body_has_taken_over_is_only_acked(
    submission: Submission, change: dict[str, Any]
) -> None:
    message = admitted(submission)
    assert plan_admitted(admitted_delivery(message), message, stored_entries(submission, **change)) is None


@pytest.mark.parametrize("submission", [SINGLE, BATCH], ids=["task", "batch"])
def test_submission_whose_entries_were_lost_leaves_those_of_another_body_alone(submission: Submission) -> None:
    """The time of an entry tells whether it was claimed again or only taken over."""
    planned = plan(admitted(submission), [*stored_entries(submission, fingerprint=b"other")])
    tasks = dict.fromkeys(task.task_id for task in submission.tasks)
    assert ids(planned.messages) == [acceptance_id(task_id, CREATED_AT) for task_id in tasks]
    assert list(planned.entries) == []


def test_batch_publishes_and_settles_what_is_not_accepted() -> None:
    """One item was accepted by an earlier attempt of this batch, which makes it no replay."""
    batch, x, y = stored_entries(BATCH)
    x = msgspec.structs.replace(x, phase=Phase.ACCEPTED)
    planned = plan(admitted(BATCH), [batch, x, y])
    assert ids(planned.messages) == [
        acceptance_id(BATCH.tasks[0].task_id, batch.created_at),
        acceptance_id(y.id, y.created_at),
    ]
    assert list(planned.entries) == [batch, y]
    assert planned.final_message is not None
    assert json.loads(planned.final_message.body)["data"]["replayed_task_ids"] == []


@pytest.mark.parametrize("is_named", [False, True])
def test_item_that_another_submission_has_is_a_replay(is_named: bool) -> None:
    """The message names it, or only the ledger knows that it was accepted meanwhile; never twice."""
    batch, x, y = stored_entries(BATCH)
    x = msgspec.structs.replace(x, origin="another", phase=Phase.QUEUED if is_named else Phase.ACCEPTED)
    planned = plan(admitted(BATCH, replayed=(x.id,) if is_named else ()), [batch, x, y])
    assert list(planned.entries) == [batch, y]
    assert len(planned.messages) == 2
    assert planned.final_message is not None
    assert json.loads(planned.final_message.body)["data"]["replayed_task_ids"] == [x.id]


def test_item_of_another_submission_that_is_not_accepted_is_published() -> None:
    """That one may have failed. An event with the same id twice is harmless, and none at all is a loss."""
    batch, x, y = stored_entries(BATCH)
    x = msgspec.structs.replace(x, origin="another", phase=Phase.QUEUED)
    planned = plan(admitted(BATCH), [batch, x, y])
    assert acceptance_id(x.id, x.created_at) in ids(planned.messages)
    assert list(planned.entries) == [batch, x, y]


def test_lost_item_has_the_creation_time_that_the_message_names() -> None:
    batch, _, y = stored_entries(BATCH)
    x_id = BATCH.tasks[1].task_id
    planned = plan(admitted(BATCH, item_created_at={x_id: CREATED_AT - 9000}), [batch, None, y])
    assert acceptance_id(x_id, CREATED_AT - 9000) in ids(planned.messages)
    assert [entry.created_at for entry in planned.entries] == [batch.created_at, CREATED_AT - 9000, y.created_at]


REFUNDED = {"doubt": Doubt.REFUNDED}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, False),
        ({"doubt": Doubt.OPEN}, False),
        (REFUNDED, True),
        (REFUNDED | {"phase": Phase.QUEUED}, False),
        (REFUNDED | {"phase": Phase.ACCEPTED}, False),
    ],
)
def test_submission_is_uncharged_if_its_own_entry_is_refunded_and_not_durable(
    entry: dict[str, Any], expected: bool
) -> None:
    assert is_uncharged(admitted(SINGLE), stored_entries(SINGLE, **entry)) is expected
    batch, *items = stored_entries(BATCH)
    assert is_uncharged(admitted(BATCH), [msgspec.structs.replace(batch, **entry), None, *items]) is expected


@pytest.mark.parametrize("origin", [BATCH.id, "another"])
def test_batch_is_uncharged_if_an_item_that_it_publishes_is_refunded(origin: str) -> None:
    """Another submission may have taken the item over before the refund."""
    batch, x, y = stored_entries(BATCH)
    refunded = msgspec.structs.replace(x, doubt=Doubt.REFUNDED, origin=origin)
    assert is_uncharged(admitted(BATCH), [batch, refunded, y])
    replayed = msgspec.structs.replace(admitted(BATCH), replayed=(x.id,))
    assert not is_uncharged(replayed, [batch, refunded, y])


def test_submission_without_entries_is_not_uncharged() -> None:
    """The ledger has lost them, and the client was answered 202."""
    assert not is_uncharged(admitted(BATCH), [None, None, None])


def test_entries_that_other_attempts_could_take_over_are_claimed_and_without_a_lease() -> None:
    batch, x, y = stored_entries(BATCH)
    leased = msgspec.structs.replace(x, lease=30_000)
    queued = msgspec.structs.replace(y, phase=Phase.QUEUED)
    assert released_entries(admitted(BATCH), [batch, leased, y]) == [batch, y]
    assert released_entries(admitted(BATCH), [batch, x, queued]) == [batch, x]
    assert released_entries(admitted(BATCH), [batch, None, None]) == [batch]


@pytest.mark.parametrize("stored", [None, b"other"])
def test_entries_of_a_submission_whose_key_it_has_lost_are_left_alone(stored: bytes | None) -> None:
    batch, x, y = stored_entries(BATCH)
    own = None if stored is None else msgspec.structs.replace(batch, fingerprint=stored)
    assert released_entries(admitted(BATCH), [own, x, y]) == []


@pytest.mark.parametrize("reason", [Reason.KEY_CONFLICT, Reason.QUOTA_EXHAUSTED])
def test_rejection_is_a_dead_letter_and_then_an_event_dated_now(reason: Reason) -> None:
    rejected = delivery(message_id=None)
    before = int(time.time())
    planned = plan_rejection(Rejection(rejected, InvalidSubmission(reason, "wrong"), "c"))
    (letter,), event = planned.messages, planned.final_message
    assert event is not None
    body = json.loads(event.body)
    assert (body["data"]["message_id"], body["data"]["reason"]) == ("", reason)
    dates = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second)) for second in range(before, before + 3)]
    assert body["time"] in dates
    assert letter.headers[TIME_HEADER] == body["time"]
    assert (planned.outcome, planned.reason, planned.mismatch) == (
        Outcome.REJECTED,
        reason,
        reason is Reason.KEY_CONFLICT,
    )
    assert (planned.entries, planned.decision) == ((), None)


@pytest.mark.parametrize("headers", [{}, {"traceparent": "wrong"}])
def test_plan_of_a_delivery_without_a_valid_trace_stays_as_it_is(headers: dict[str, Any]) -> None:
    message = Message(exchange="e", routing_key="r", body=b"{}", message_id="m")
    planned = OutboundPlan(delivery(headers=headers), [message], message)
    add_trace(planned)
    assert (planned.messages, planned.final_message) == ([message], message)


def test_trace_is_added_to_the_headers_of_messages_and_to_the_body_of_events() -> None:
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    message = Message(exchange="e", routing_key="r", body=b"{}", message_id="m", headers={"kept": 1})
    event = msgspec.structs.replace(message, body=b'{"id":"1"}', content_type=CLOUDEVENTS)
    planned = OutboundPlan(delivery(headers={"traceparent": traceparent}), [message, event])
    add_trace(planned)
    assert [traced.headers for traced in planned.messages] == [{"kept": 1, "traceparent": traceparent}] * 2
    assert [json.loads(traced.body) for traced in planned.messages] == [{}, {"traceparent": traceparent, "id": "1"}]
    assert planned.final_message is None
