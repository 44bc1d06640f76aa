"""Events of the SDK: decoded from what the service really publishes, and from its schemas."""

import json
import pickle
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from typing import Any

import pytest
from asg_gateway import InvalidEventError
from asg_gateway.amqp import (
    BatchAccepted,
    Event,
    SubmissionDuplicate,
    SubmissionRejected,
    TaskAccepted,
    UnknownEvent,
    decode,
)
from asg_gateway.amqp.testing import (
    batch_accepted,
    encode,
    sample_events,
    submission_duplicate,
    submission_rejected,
    task_accepted,
)
from jsonschema import Draft202012Validator

from ingest.domain import events
from ingest.domain.errors import FieldError, InvalidSubmission, Reason
from ingest.domain.ledger import submission_entry
from ingest.domain.submissions import batch_submission, task_submission
from ingest.domain.trace import Trace
from ingest.shim import event_schema

CREATED_AT = 1_775_736_000_250
TIME = datetime(2026, 4, 9, 12, tzinfo=UTC)
HOOK = "https://a.example/hook"
TASK = {
    "type": "sentiment",
    "data_url": "https://a.example/ü.txt",
    "label_spec": {"question": "Mood?", "options": ["good", "bad"], "hint": {"size": 1}},
    "callback_url": HOOK,
}
TRACEPARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
OVERRIDDEN = [
    task_accepted(task_type="moderation", callback_url=HOOK, batch_id="bat_01h455vb4pex5vsknk084sn02r", batch_index=4),
    task_accepted(traceparent=TRACEPARENT, tracestate="a=b"),
    batch_accepted(task_ids=("tsk_01h455vb4pex5vsknk084sn02q",) * 2, task_count=2),
    submission_duplicate(batch_id="bat_01h455vb4pex5vsknk084sn02r", payload_mismatch=True),
    submission_rejected(reason="malformed", errors=(), message_id=""),
    submission_rejected(cust_id="", subject=None),
]


def test_task_accepted_has_every_field_of_the_real_event() -> None:
    batch = batch_submission({"tasks": [TASK]}, "acme", {HOOK}, "k")
    task = batch.tasks[0]
    message = events.task_accepted(task, "acme", CREATED_AT, (batch.id, 7), key="own")
    event = decode(events.traced(message, Trace(TRACEPARENT, "vendor=1")).body)
    assert isinstance(event, TaskAccepted)
    assert (event.id, event.event_type, event.time) == (message.message_id, events.TASK_ACCEPTED, TIME)
    assert (event.source, event.subject, event.task_id) == ("/asg/ingest", task.task_id, task.task_id)
    assert (event.cust_id, event.created_at, event.task_type) == ("acme", TIME, "sentiment")
    assert (event.data_url, event.label_spec) == (TASK["data_url"], TASK["label_spec"])
    assert (event.consensus_threshold, event.callback_url) == (3, HOOK)
    assert (event.batch_id, event.batch_index, event.idempotency_key) == (batch.id, 7, "own")
    assert (event.traceparent, event.tracestate) == (TRACEPARENT, "vendor=1")


def test_batch_accepted_has_every_field_of_the_real_event() -> None:
    batch = batch_submission({"tasks": [TASK, {**TASK, "idempotency_key": "b"}]}, "acme", {HOOK}, "k")
    ids = tuple(task.task_id for task in batch.tasks)
    event = decode(events.batch_accepted(batch, CREATED_AT, ids[1:]).body)
    assert isinstance(event, BatchAccepted)
    assert (event.batch_id, event.cust_id, event.created_at) == (batch.id, "acme", TIME)
    assert (event.task_count, event.task_ids, event.replayed_task_ids) == (2, ids, ids[1:])
    assert event.idempotency_key == "k"


def test_submission_duplicate_has_every_field_of_the_real_event() -> None:
    task = task_submission(TASK, "acme", {HOOK}, "k")
    event = decode(events.duplicate(submission_entry(task, CREATED_AT, 60), task, "m-1").body)
    assert isinstance(event, SubmissionDuplicate)
    assert (event.task_id, event.batch_id, event.cust_id) == (task.id, None, "acme")
    assert (event.created_at, event.message_id, event.payload_mismatch) == (TIME, "m-1", False)


def test_submission_rejected_has_every_field_of_the_real_event() -> None:
    error = InvalidSubmission(Reason.INVALID, "a is wrong", (FieldError(field="a", error="a is wrong"),))
    event = decode(events.rejected("acme", "m-1", CREATED_AT, error, "0" * 32).body)
    assert isinstance(event, SubmissionRejected)
    assert (event.cust_id, event.message_id, event.reason) == ("acme", "m-1", "invalid")
    assert (event.error, event.errors) == ("a is wrong", (("a", "a is wrong"),))


@pytest.mark.parametrize("event", [*sample_events(), *OVERRIDDEN], ids=lambda event: type(event).__name__)
def test_sample_event_fits_the_schema_and_survives_encoding(event: Event) -> None:
    name = event.event_type.removeprefix("io.asgrefinery.")
    body = json.loads(encode(event))
    assert [error.message for error in Draft202012Validator(event_schema(name)).iter_errors(body)] == []
    assert decode(encode(event)) == event
    assert pickle.loads(pickle.dumps(event)) == event


def test_sample_events_have_every_type_of_the_service() -> None:
    types = {events.TASK_ACCEPTED, events.BATCH_ACCEPTED, events.DUPLICATE, events.REJECTED}
    assert {event.event_type for event in sample_events()} == types


def test_key_of_a_report_is_the_producers_own() -> None:
    assert submission_rejected(message_id="m").key == "m"
    assert submission_rejected(message_id="m", idempotency_key="k").key == "k"
    assert submission_duplicate(message_id="m", idempotency_key="k").key == "k"


def test_fields_that_are_not_known_are_in_data_only() -> None:
    event = task_accepted(colour="red", idempotency_key="k")
    assert (event.data["colour"], event.idempotency_key) == ("red", "k")


def test_event_cannot_be_changed_and_can_be_in_a_set() -> None:
    event = task_accepted()
    with pytest.raises(FrozenInstanceError):
        event.task_id = "other"  # type: ignore[misc]
    assert len({event, task_accepted()}) == 1


def test_event_of_an_unknown_type_keeps_its_data() -> None:
    body = {**json.loads(encode(task_accepted())), "type": "io.asgrefinery.task.labelled", "data": {"answer": "good"}}
    event = decode(json.dumps(body).encode())
    assert isinstance(event, UnknownEvent)
    assert (event.event_type, event.data) == ("io.asgrefinery.task.labelled", {"answer": "good"})


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the message is not JSON"),
        (b"\xff", "the message is not JSON"),
        (b"[" * 100_000, "the message is not JSON"),
        (b"[]", "the message is not a JSON object"),
        (b"{}", "the event has no specversion"),
    ],
)
def test_message_that_is_no_event_is_an_error_that_says_why(body: bytes, problem: str) -> None:
    with pytest.raises(InvalidEventError, match=problem):
        decode(body)


@pytest.mark.parametrize(
    ("event", "change", "problem"),
    [
        (task_accepted(), {"specversion": "0.3"}, "specversion '0.3' instead of 1.0"),
        (task_accepted(), {"id": ""}, "an empty id"),
        (task_accepted(), {"id": 5}, "id of the event is not of type str"),
        (task_accepted(), {"time": "yesterday"}, "time of the event is not a time like"),
        (task_accepted(), {"time": "2026-04-09T12:00:00"}, "time of the event is not a time like"),
        (task_accepted(), {"data": None}, "data of the event is not of type dict"),
        (task_accepted(), {"data": {}}, "the event has no data.task_id"),
        (batch_accepted(), {"data": {**batch_accepted().data, "task_ids": [1]}}, "data.task_ids .* list of strings"),
        (batch_accepted(), {"data": {**batch_accepted().data, "task_count": True}}, "data.task_count .* type int"),
        (submission_rejected(), {"data": {**submission_rejected().data, "errors": ["a"]}}, r"no data.errors\[\].field"),
    ],
)
def test_wrong_field_is_an_error_that_names_it(event: Event, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidEventError, match=problem):
        decode(json.dumps({**json.loads(encode(event)), **change}).encode())
