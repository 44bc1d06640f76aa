"""Real events and dead letters fit their published schemas, and have no fields that the schemas do not name."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ingest.domain import event_data, events
from ingest.domain.dead_letters import ENVELOPE_HEADER, dead_letter, read
from ingest.domain.errors import FieldError, InvalidSubmission, Reason
from ingest.domain.ledger import submission_entry
from ingest.domain.messages import Message
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.domain.trimming import trimmed_letter
from ingest.domain.validation import TASK_TYPES
from ingest.shim import asyncapi_document, event_schema
from ingest.worker.plan import plan_rejection
from ingest.worker.rejections import Rejection
from tests.support.deliveries import delivery
from tests.unit.documents.schemas import problems

HOOK = "https://a.example/hook"
TIME = "2026-04-09T12:00:00Z"
CREATED_AT = 1_775_736_000_250
text = st.text(max_size=20)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(lambda word: f"w{word}")
cust_ids = st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z")
keys = st.none() | st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=255)
bodies = st.fixed_dictionaries(
    {
        "type": st.sampled_from(TASK_TYPES),
        "data_url": st.from_regex(r"\Ahttps://[a-z]{1,9}(/[a-z\"\\?ü]{0,9})?\Z"),
        "label_spec": st.fixed_dictionaries(
            {
                "question": words,
                "options": st.lists(words, min_size=2, max_size=4).filter(lambda options: len({*options}) > 1),
            },
            optional={"hint": st.recursive(text | st.none() | st.integers(-9, 9), st.lists, max_leaves=5)},
        ),
    },
    optional={
        "consensus_threshold": st.integers(2, 10),
        "callback_url": st.just(HOOK),
        "idempotency_key": st.text("abc", min_size=1, max_size=3),
    },
)


def check(name: str, message: Message) -> dict[str, Any]:
    """Return the body; assert that it fits its schema and has no field that the schema does not name."""
    schema = event_schema(name)
    body: dict[str, Any] = msgspec.json.decode(message.body)
    assert [error.message for error in Draft202012Validator(schema).iter_errors(body)] == []
    assert set(body) <= set(schema["properties"])
    if "data" in body:
        data = schema["$defs"][schema["properties"]["data"]["$ref"].rpartition("/")[2]]
        assert set(body["data"]) <= set(data["properties"])
        assert message.message_id == body["id"]
    check_properties(name, message)
    return body


def check_properties(name: str, message: Message) -> None:
    """Assert that the AMQP properties fit the AsyncAPI document, and that it names every one of them."""
    first, _, second = name.replace("-", ".").partition(".")
    document = asyncapi_document()
    schema = document["components"]["messages"][f"{first}{second.capitalize()}"]["x-amqp-properties"]
    properties = {
        "message_id": message.message_id,
        "content_type": message.content_type,
        "delivery_mode": 2,
        "timestamp": message.timestamp,
    }
    assert problems(document, schema, properties) == []
    assert set(properties) <= set(schema["properties"])


def submitted(body: dict[str, Any], cust_id: str, key: str | None) -> Submission:
    return task_submission(body, cust_id, {HOOK}, key)


@given(bodies, cust_ids, keys, st.none() | st.integers(0, 999))
def test_task_accepted_event_fits_its_schema(
    body: dict[str, Any], cust_id: str, key: str | None, index: int | None
) -> None:
    """The task is accepted alone, or as item `index` of a batch."""
    task = submitted(body, cust_id, key).tasks[0]
    batch = None if index is None else (batch_submission({"tasks": [body]}, cust_id, {HOOK}, key).id, index)
    event = check("task.accepted", events.task_accepted(task, cust_id, CREATED_AT, batch, key=key))
    assert (event["time"], event["data"]["created_at"]) == (TIME, TIME)
    assert event["data"]["label_spec"] == body["label_spec"]
    assert (event["data"].get("batch_index"), event["data"].get("idempotency_key")) == (index, key)


@given(st.lists(bodies, min_size=1, max_size=5), cust_ids, keys, st.booleans())
def test_batch_accepted_event_fits_its_schema(
    tasks: list[dict[str, Any]], cust_id: str, key: str | None, has_replay: bool
) -> None:
    batch = batch_submission({"tasks": tasks, "callback_url": HOOK}, cust_id, {HOOK}, key)
    replayed = [batch.tasks[0].task_id] if has_replay else []
    event = check("batch.accepted", events.batch_accepted(batch, CREATED_AT, replayed))
    assert event["data"]["task_ids"] == [task.task_id for task in batch.tasks]
    assert event["data"].get("idempotency_key") == key


@given(bodies, cust_ids, st.text(max_size=255), st.booleans(), st.booleans())
def test_submission_duplicate_event_fits_its_schema(
    body: dict[str, Any], cust_id: str, message_id: str, is_batch: bool, mismatch: bool
) -> None:
    submission = batch_submission({"tasks": [body]}, cust_id, {HOOK}) if is_batch else submitted(body, cust_id, None)
    original = submission_entry(submission, CREATED_AT, 60)
    if mismatch:
        original = msgspec.structs.replace(original, fingerprint=b"other")
    event = check("submission.duplicate", events.duplicate(original, submission, message_id))
    assert event["data"]["payload_mismatch"] == mismatch
    assert ("batch_id" in event["data"], "task_id" in event["data"]) == (is_batch, not is_batch)


@given(
    st.binary(max_size=50) | text.map(str.encode),
    st.none() | text,
    st.sampled_from([*Reason]),
    st.just("") | cust_ids,
    st.lists(st.builds(FieldError, text, text), max_size=3),
)
def test_dead_letter_and_submission_rejected_event_fit_their_schemas(
    body: bytes, message_id: str | None, reason: Reason, cust_id: str, errors: list[FieldError]
) -> None:
    rejection = Rejection(
        delivery(body=body, message_id=message_id, content_type=None, user_id=None),
        InvalidSubmission(reason, "why", tuple(errors)),
        cust_id,
    )
    plan = plan_rejection(rejection)
    (dead,) = plan.messages
    assert plan.final_message is not None
    letter = check("dead-letter", dead)
    event = check("submission.rejected", plan.final_message)
    assert ("body" in letter["submission"]) != ("body_base64" in letter["submission"])
    assert event.get("subject", "") == cust_id


@pytest.mark.parametrize("errors", [1, 100])
def test_large_dead_letter_has_its_envelope_in_a_header_and_fits_only_its_own_schema(errors: int) -> None:
    """The envelope leaves out errors that are too large for a header."""
    field_errors = tuple([FieldError("f" * 500, "g" * 500)] * errors)
    error = InvalidSubmission(Reason.MALFORMED, "why", field_errors)
    large = dead_letter(delivery(body=b"\0" * 4 * 1024 * 1024, message_id="m"), error, TIME)
    small = dead_letter(delivery(body=b"\0", message_id="m"), error, TIME)
    document = asyncapi_document()
    kinds = {name: document["components"]["messages"][name] for name in ("deadLetter", "largeDeadLetter")}
    fits = {
        name: [not problems(document, kind["headers"], letter.headers) for letter in (small, large)]
        for name, kind in kinds.items()
    }
    assert fits == {"deadLetter": [True, False], "largeDeadLetter": [False, True]}
    header = kinds["largeDeadLetter"]["headers"]["properties"][ENVELOPE_HEADER]
    envelope = msgspec.json.decode(str(large.headers[ENVELOPE_HEADER]))
    assert problems(document, header["contentSchema"], envelope) == []
    assert problems(document, header["contentSchema"], msgspec.json.decode(small.body)) != []
    assert len(envelope["errors"]) == (errors if errors == 1 else 0)
    assert large.content_type == kinds["largeDeadLetter"]["contentType"]


@given(
    st.binary(max_size=50),
    st.none() | st.text(max_size=300),
    st.sampled_from([*Reason, "expired", "x" * 500]),
    st.text(max_size=300),
    st.none() | st.floats(),
)
def test_trimmed_dead_letter_fits_its_schema_whatever_was_rejected(
    body: bytes, message_id: str | None, reason: str, error: str, died_at: float | None
) -> None:
    rejected = dead_letter(delivery(body=body, message_id=message_id), InvalidSubmission(Reason.INVALID, "why"), TIME)
    dead = read(
        delivery(body=rejected.body, routing_key=rejected.routing_key, message_id=message_id), frozenset({"acme"})
    )
    dead = msgspec.structs.replace(dead, reason=reason, error=error, died_at=died_at)
    letter = trimmed_letter(dead, TIME)
    validator = Draft202012Validator(event_schema("trimmed-dead-letter"))
    assert [problem.message for problem in validator.iter_errors(msgspec.json.decode(letter.body))] == []
    document = asyncapi_document()
    kind = document["components"]["messages"]["trimmedDeadLetter"]
    assert problems(document, kind["headers"], letter.headers) == []
    properties = {"message_id": letter.message_id, "content_type": letter.content_type, "delivery_mode": 2}
    if letter.timestamp is not None:
        properties["timestamp"] = letter.timestamp
    assert problems(document, kind["x-amqp-properties"], properties) == []
    assert letter.routing_key == document["channels"]["trimmed"]["address"]


def rejection_ids(reason: Reason = Reason.INVALID, **changes: Any) -> list[str]:
    """The ids of the dead letter and the event of a rejected delivery with the message_id m."""
    rejection = Rejection(delivery(message_id="m", **changes), InvalidSubmission(reason, "why"), "acme")
    plan = plan_rejection(rejection)
    assert plan.final_message is not None
    return [message.message_id for message in (*plan.messages, plan.final_message)]


@pytest.mark.parametrize("changes", [{"body": b'{"type":1}'}, {"timestamp": 6}, {"timestamp": None}])
def test_rejections_of_different_submissions_with_one_message_id_have_different_ids(changes: dict[str, Any]) -> None:
    """A reader that drops events with known ids gets both. A redelivered message is rejected with the same ids."""
    first: dict[str, Any] = {"body": b"{}", "timestamp": 5}
    ids, others = rejection_ids(**first), rejection_ids(**first | changes)
    assert (ids[0] != others[0], ids[1] != others[1]) == (True, True)
    assert rejection_ids(**first, redelivered=True) == ids


def test_rejection_for_another_reason_is_another_event() -> None:
    """A submission that is redriven may be rejected for another reason, of which its producer must hear."""
    assert rejection_ids(Reason.QUOTA_EXHAUSTED)[1] != rejection_ids(Reason.KEY_CONFLICT)[1]


def test_models_name_the_event_types_that_the_service_sends() -> None:
    models = {
        events.TASK_ACCEPTED: event_data.TaskAccepted,
        events.BATCH_ACCEPTED: event_data.BatchAccepted,
        events.DUPLICATE: event_data.SubmissionDuplicate,
        events.REJECTED: event_data.SubmissionRejected,
    }
    for event_type, model in models.items():
        assert event_type in str(model.__annotations__["type"])
