"""Sample events. They fit the gateway's JSON Schemas, unless you override a field with a value that does not."""

import json
from datetime import UTC, datetime
from typing import Any, Final

from asg_gateway.amqp._decoding import decode
from asg_gateway.amqp._events import (
    BatchAccepted,
    Event,
    SubmissionDuplicate,
    SubmissionRejected,
    TaskAccepted,
)

TASK_ID: Final = "tsk_01h455vb4pex5vsknk084sn02q"
BATCH_ID: Final = "bat_01h455vb4pex5vsknk084sn02r"
_TIME: Final = "2026-04-09T12:00:00Z"
_MILLISECONDS: Final = 1_775_736_000_000
_DIGEST: Final = "0123456789abcdef0123456789abcdef"
_ENVELOPE: Final = frozenset({"id", "source", "subject", "time", "traceparent", "tracestate"})


def task_accepted(**fields: Any) -> TaskAccepted:
    """Return an accepted task.

    Args:
        fields: attributes of the event that differ, such as `task_id`, `task_type` or `callback_url`. Unless you give
            `id` and `subject`, they follow from them.
    """
    data = {
        "task_id": TASK_ID,
        "cust_id": "acme",
        "created_at": _TIME,
        "type": "sentiment",
        "data_url": "https://cdn.example.com/review.txt",
        "label_spec": {"question": "Mood?", "options": ["good", "bad"]},
        "consensus_threshold": 3,
    }
    if "task_type" in fields:
        fields["type"] = fields.pop("task_type")
    event = _event(TaskAccepted.TYPE, data, fields, "task_id", "{subject}:accepted:{time}")
    assert isinstance(event, TaskAccepted)  # noqa: S101 - for the type checker
    return event


def batch_accepted(**fields: Any) -> BatchAccepted:
    """Return an accepted batch of one task; arguments as those of `task_accepted`."""
    data = {
        "batch_id": BATCH_ID,
        "cust_id": "acme",
        "created_at": _TIME,
        "task_count": 1,
        "task_ids": [TASK_ID],
        "replayed_task_ids": [],
    }
    event = _event(BatchAccepted.TYPE, data, fields, "batch_id", "{subject}:accepted:{time}")
    assert isinstance(event, BatchAccepted)  # noqa: S101 - for the type checker
    return event


def submission_duplicate(**fields: Any) -> SubmissionDuplicate:
    """Return a report about a repeated task, or batch if you give `batch_id`; arguments as those of `task_accepted`."""
    original = {} if "batch_id" in fields else {"task_id": TASK_ID}
    data = {
        **original,
        "cust_id": "acme",
        "created_at": _TIME,
        "message_id": "order-10042-line-3",
        "payload_mismatch": False,
    }
    name = "batch_id" if "batch_id" in fields else "task_id"
    event = _event(SubmissionDuplicate.TYPE, data, fields, name, f"{{subject}}:duplicate:{{time}}:{_DIGEST}")
    assert isinstance(event, SubmissionDuplicate)  # noqa: S101 - for the type checker
    return event


def submission_rejected(**fields: Any) -> SubmissionRejected:
    """Return a report about a rejected task; arguments as those of `task_accepted`."""
    data = {
        "cust_id": "acme",
        "message_id": "order-10042-line-3",
        "reason": "invalid",
        "error": "data_url must start with https://",
        "errors": [("data_url", "data_url must start with https://")],
    }
    reason = fields.get("reason", "invalid")
    event = _event(SubmissionRejected.TYPE, data, fields, "cust_id", f"rejected:{reason}:{_DIGEST}")
    assert isinstance(event, SubmissionRejected)  # noqa: S101 - for the type checker
    return event


def sample_events() -> list[Event]:
    """Return one event of each type."""
    return [task_accepted(), batch_accepted(), submission_duplicate(), submission_rejected()]


def encode(event: Event) -> bytes:
    """Return the body of the message with an event, as the gateway publishes it."""
    envelope = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.event_type,
        "subject": event.subject,
        "time": _text(event.time),
        "datacontenttype": "application/json",
        "traceparent": event.traceparent,
        "tracestate": event.tracestate,
        "data": event.data,
    }
    return json.dumps({name: value for name, value in envelope.items() if value is not None}).encode()


def _event(event_type: str, defaults: dict[str, Any], fields: dict[str, Any], subject: str, event_id: str) -> Event:
    data = {**defaults, **{name: value for name, value in fields.items() if name not in _ENVELOPE}}
    data = {name: _json(value) for name, value in data.items() if value is not None}
    if "errors" in data:
        data["errors"] = [{"field": field, "error": error} for field, error in data["errors"]]
    envelope = {
        "specversion": "1.0",
        "id": event_id.format(subject=data.get(subject), time=_MILLISECONDS),
        "source": "/asg/ingest",
        "type": event_type,
        "subject": data.get(subject),
        "time": _TIME,
        "datacontenttype": "application/json",
        **{name: _json(value) for name, value in fields.items() if name in _ENVELOPE},
        "data": data,
    }
    return decode(json.dumps({name: value for name, value in envelope.items() if value is not None}).encode())


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return _text(value)
    return list(value) if isinstance(value, tuple) else value


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
