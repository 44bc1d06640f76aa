"""The events, as CloudEvents 1.0 in structured JSON (https://cloudevents.io), one AMQP message each.

Event ids are deterministic: every copy of an event has the same `id`, so that consumers can drop repeats.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from ingest.domain.errors import InvalidSubmission
from ingest.domain.messages import CLOUDEVENTS, Message
from ingest.domain.submissions import Submission, Task
from ingest.domain.topology import EVENTS
from ingest.domain.trace import Trace

SOURCE = "/asg/ingest"
TASK_ACCEPTED = "io.asgrefinery.task.accepted"
BATCH_ACCEPTED = "io.asgrefinery.batch.accepted"
DUPLICATE = "io.asgrefinery.submission.duplicate"
REJECTED = "io.asgrefinery.submission.rejected"

_encode = msgspec.json.encode


def rfc3339(milliseconds: int) -> str:
    """Format a Unix time in milliseconds as the contract does: `2026-04-09T12:00:00Z`, whole seconds, UTC."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def task_accepted(task: Task, cust_id: str, created_at: str, batch: tuple[str, int] | None = None) -> Message:
    """Return the acceptance event of a task; `batch` is (batch_id, index) if the task is an item of a batch.

    The body is assembled from JSON that is canonical already, because parsing it again would be most of the cost.
    Ids, customer ids and times need no escaping.
    """
    webhook = "webhook" if task.has_callback else "none"
    place = b"" if batch is None else b'"batch_id":"%b","batch_index":%d,' % (batch[0].encode(), batch[1])
    task_id = task.task_id.encode()
    time = created_at.encode()
    body = (
        b'{"specversion":"1.0","id":"%b:accepted","source":"/asg/ingest","type":"io.asgrefinery.task.accepted",'
        b'"subject":"%b","time":"%b","datacontenttype":"application/json",'
        b'"data":{"task_id":"%b","cust_id":"%b","created_at":"%b",%b%b}'
        % (task_id, task_id, time, task_id, cust_id.encode(), time, place, bytes(task.body)[1:])
    )
    return Message(
        exchange=EVENTS,
        routing_key=f"task.accepted.{task.type}.{webhook}",
        body=body,
        message_id=f"{task.task_id}:accepted",
        content_type=CLOUDEVENTS,
    )


def batch_accepted(submission: Submission, created_at: str, replayed: Sequence[str]) -> Message:
    """Return the acceptance event of a batch, published after all its tasks' events.

    `created_at` is RFC 3339 text; `replayed` are the ids of tasks that were accepted before.
    """
    with_callback = any(task.has_callback for task in submission.tasks)
    data = {
        "batch_id": submission.id,
        "cust_id": submission.cust_id,
        "created_at": created_at,
        "task_count": len(submission.tasks),
        "task_ids": [task.task_id for task in submission.tasks],
        "replayed_task_ids": list(replayed),
    }
    key = f"batch.accepted.{'webhook' if with_callback else 'none'}"
    return _event(BATCH_ACCEPTED, f"{submission.id}:accepted", submission.id, created_at, data, key, with_callback)


def duplicate(submission_id: str, cust_id: str, message_id: str, created_at: str, *, mismatch: bool) -> Message:
    """Return the event of a direct submission that repeats a durable one.

    `created_at` is the original's, as RFC 3339 text.
    """
    kind = "batch_id" if submission_id.startswith("bat_") else "task_id"
    data: dict[str, Any] = {kind: submission_id, "cust_id": cust_id, "created_at": created_at, "message_id": message_id}
    data["payload_mismatch"] = mismatch
    event_id = f"{submission_id}:duplicate:{_digest(cust_id, message_id)}"
    return _event(DUPLICATE, event_id, submission_id, created_at, data, "submission.duplicate", False)


def rejected(cust_id: str, message_id: str, now: str, error: InvalidSubmission, digest: str) -> Message:
    """Return the event of a direct submission that was rejected; the submission itself is in `ingest.dead`.

    `now` is RFC 3339 text. `digest` covers the whole submission: one message_id, or none, may come with several wrong
    bodies.
    """
    data = {
        "cust_id": cust_id,
        "message_id": message_id,
        "reason": error.reason,
        "error": error.message,
        "errors": error.errors,
    }
    return _event(REJECTED, f"rejected:{digest}", cust_id, now, data, "submission.rejected", False)


def traced(event: Message, trace: Trace) -> Message:
    """Return a copy of the event with a trace context.

    It is CloudEvents' distributed tracing extension in the body, and also in the message's headers.
    """
    body = b"{" + trace.json_members() + event.body[1:]
    return msgspec.structs.replace(event, body=body, headers=event.headers | trace.headers())


def _digest(cust_id: str, message_id: str) -> str:
    """Return a short name for a message: a message id may be up to 255 bytes of any text."""
    return hashlib.sha256(f"{cust_id}:{message_id}".encode()).hexdigest()[:32]


def _event(
    type_: str,
    event_id: str,
    subject: str,
    time: str,
    data: dict[str, Any],
    routing_key: str,
    mandatory: bool,
) -> Message:
    event = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": type_,
        **({"subject": subject} if subject else {}),  # CloudEvents has no empty subject
        "time": time,
        "datacontenttype": "application/json",
        "data": data,
    }
    return Message(
        exchange=EVENTS,
        routing_key=routing_key,
        body=_encode(event),
        message_id=event_id,
        content_type=CLOUDEVENTS,
        mandatory=mandatory,
    )
