"""What travels over the exchange, as AsyncAPI messages. Examples are made by the code that sends the real ones."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ingest.domain import event_data, events
from ingest.domain.admitted import TYPE as ADMITTED
from ingest.domain.dead_letters import ENVELOPE_HEADER, LARGEST, REASON_HEADER, TIME_HEADER, dead_letter
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import CLOUDEVENTS, JSON, Delivery, Message
from ingest.domain.submissions import MAX_BODY, Submission, batch_submission, task_submission
from ingest.domain.topology import INGEST_TASKS
from ingest.domain.validation import BatchBody, TaskBody
from ingest.shim.documents import examples
from ingest.shim.documents.schemas import ref

_MESSAGE_ID: Final = "line-3-of-order-10042"
_DIGEST: Final = "8d3f1c0a5b7e49d2a6c4f0e1b2d39587"
_WRONG: Final = InvalidSubmission(Reason.INVALID, "label_spec.question is required")
_SUBMISSION_PROPERTIES: Final = {
    "type": "object",
    "required": ["message_id"],
    "properties": {
        "message_id": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "description": "Makes a repeat safe: it is the idempotency key where the body has none. At most 255 bytes.",
        },
        "content_type": {"const": JSON, "description": "Or left out."},
        "user_id": {"type": "string", "description": "Your AMQP user, which must be the cust_id; or left out."},
        "delivery_mode": {"const": 2, "description": "Persistent."},
        "type": {"not": {"const": ADMITTED}, "description": "Any but the service's own."},
    },
}
_TRACE_HEADERS: Final = {
    "type": "object",
    "properties": {
        "traceparent": {"type": "string", "description": "W3C Trace Context.", "examples": [examples.TRACEPARENT]},
        "tracestate": {"type": "string"},
    },
}
_EVENT_PROPERTIES: Final = {
    "type": "object",
    "required": ["message_id", "content_type", "delivery_mode"],
    "properties": {
        "message_id": {"type": "string", "description": "The event's `id`; drop repeats by it."},
        "content_type": {"const": CLOUDEVENTS},
        "delivery_mode": {"const": 2},
    },
}
_DEATH_HEADERS: Final = {
    "type": "object",
    "description": "RabbitMQ's own, see its page on dead letter exchanges.",
    "properties": {
        "x-first-death-reason": {"type": "string", "examples": ["delivery_limit"]},
        "x-first-death-queue": {"type": "string", "examples": [INGEST_TASKS]},
        "x-death": {"type": "array"},
    },
}
_REASON_HEADERS: Final = {
    REASON_HEADER: {"type": "string", "enum": [str(reason) for reason in Reason]},
    TIME_HEADER: {"type": "string", "format": "date-time", "examples": [examples.CREATED_AT]},
}


def messages() -> dict[str, Any]:
    """`components.messages`, by name."""
    return {
        "taskSubmission": _submission(TaskBody, "A task to be labelled.", examples.TASK),
        "batchSubmission": _submission(BatchBody, "Up to 1,000 tasks, taken whole or not at all.", examples.BATCH),
        "taskAccepted": _event(
            event_data.TaskAccepted,
            "task_id",
            {
                "a single task": events.task_accepted(_task().tasks[0], examples.CUSTOMER, examples.CREATED_AT),
                "the first of a batch": events.task_accepted(
                    _batch().tasks[0], examples.CUSTOMER, examples.CREATED_AT, (examples.BATCH_ID, 0)
                ),
            },
        ),
        "batchAccepted": _event(
            event_data.BatchAccepted,
            "batch_id",
            {"a batch of two": events.batch_accepted(_batch(), examples.CREATED_AT, [])},
        ),
        "submissionDuplicate": _event(
            event_data.SubmissionDuplicate,
            "message_id",
            {
                "a repeated task": events.duplicate(
                    examples.TASK_ID, examples.CUSTOMER, _MESSAGE_ID, examples.CREATED_AT, mismatch=False
                )
            },
        ),
        "submissionRejected": _event(
            event_data.SubmissionRejected,
            "message_id",
            {
                "a field is missing": events.rejected(
                    examples.CUSTOMER, _MESSAGE_ID, examples.CREATED_AT, _WRONG, _DIGEST
                )
            },
        ),
        "deadLetter": _dead_letter(),
        "largeDeadLetter": _large_dead_letter(),
        "poisoned": {
            "title": "Poisoned submission",
            "summary": "A submission that was delivered too often, as it was in its queue.",
            "contentType": JSON,
            "headers": _DEATH_HEADERS,
            "payload": {
                "type": "object",
                "description": "A submission's body, or the service's own form of one (AMQP type "
                f"`{ADMITTED}`), which is not for others to read.",
            },
        },
    }


def _task() -> Submission:
    return task_submission(examples.TASK, examples.CUSTOMER, frozenset())


def _batch() -> Submission:
    return batch_submission(examples.BATCH, examples.CUSTOMER, {examples.WEBHOOK}, examples.BATCH_KEY)


def _submission(model: Any, summary: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": model.__name__,
        "summary": summary,
        "description": f"At most {MAX_BODY} bytes. Publish it persistent, with `mandatory` and a publisher confirm; "
        "where no confirm comes, publish it again with the same message_id.",
        "contentType": JSON,
        "correlationId": {
            "description": "Where the body has a key of its own; else it is the property message_id.",
            "location": "$message.payload#/idempotency_key",
        },
        "headers": _TRACE_HEADERS,
        "payload": ref(model),
        "x-amqp-properties": _SUBMISSION_PROPERTIES,
        "examples": [{"name": model.__name__, "summary": summary, "payload": body}],
    }


def _event(model: Any, correlation: str, sent: Mapping[str, Message]) -> dict[str, Any]:
    return {
        "title": model.__name__,
        "summary": (model.__doc__ or "").strip(),
        "contentType": CLOUDEVENTS,
        "correlationId": {"location": f"$message.payload#/data/{correlation}"},
        "headers": _TRACE_HEADERS,
        "payload": ref(model),
        "x-amqp-properties": _EVENT_PROPERTIES,
        "examples": [
            {"name": name.replace(" ", "-"), "summary": name, "payload": msgspec.json.decode(message.body)}
            for name, message in sent.items()
        ],
    }


def _dead_letter() -> dict[str, Any]:
    body = {name: value for name, value in examples.TASK.items() if name != "label_spec"}
    delivery = Delivery(
        body=msgspec.json.encode(body | {"label_spec": {"options": ["yes", "no"]}}),
        queue=INGEST_TASKS,
        routing_key=f"task.submitted.{examples.CUSTOMER}",
        message_id=_MESSAGE_ID,
        content_type=JSON,
        user_id=examples.CUSTOMER,
        type=None,
        headers={},
        redelivered=False,
        deliveries=0,
        token=None,
    )
    sent = dead_letter(delivery, _WRONG, examples.CREATED_AT)
    return {
        "title": "DeadLetter",
        "summary": "A refused submission, with the reason and all it takes to submit it again.",
        "contentType": JSON,
        "correlationId": {"location": "$message.payload#/submission/message_id"},
        "headers": {
            "type": "object",
            "required": [REASON_HEADER, TIME_HEADER],
            "properties": _REASON_HEADERS,
            "not": {"required": [ENVELOPE_HEADER]},
        },
        "payload": ref(event_data.DeadLetter),
        "examples": [{"name": "invalid", "headers": sent.headers, "payload": msgspec.json.decode(sent.body)}],
    }


def _large_dead_letter() -> dict[str, Any]:
    envelope = {
        "type": "string",
        "description": "JSON: what is else the body, without the submission's own; `errors` is empty where they are "
        "too large for a header.",
        "contentMediaType": JSON,
        "contentSchema": {
            "allOf": [
                ref(event_data.DeadLetter),
                {"properties": {"submission": {"properties": {"body": False, "body_base64": False}}}},
            ]
        },
    }
    return {
        "title": "LargeDeadLetter",
        "summary": f"A refused submission that as a DeadLetter would have more than {LARGEST} bytes.",
        "contentType": JSON,
        "headers": {
            "type": "object",
            "required": [REASON_HEADER, TIME_HEADER, ENVELOPE_HEADER],
            "properties": {**_REASON_HEADERS, ENVELOPE_HEADER: envelope},
        },
        "payload": {
            "description": "The submission's body as it came: any bytes, for it may have been refused as no JSON."
        },
    }
