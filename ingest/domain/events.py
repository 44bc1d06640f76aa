"""The events, as CloudEvents 1.0 in structured JSON (https://cloudevents.io), one AMQP message each.

Event ids are computed, and say which acceptance or message an event is about. Every copy of an event has the same `id`,
so that consumers can drop repeats. Two events that differ have different ids: a key that is accepted again after its
retention is another acceptance, and so are the reports about it. All times are Unix times in milliseconds.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from ingest.domain.errors import InvalidSubmission
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Entry
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
    return _rfc3339(milliseconds // 1000)


@lru_cache(maxsize=1024)
def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def acceptance_id(submission_id: str, created_at: int) -> str:
    """Return the id of the acceptance event of a task or batch; `created_at` is that of its own ledger entry."""
    return f"{submission_id}:accepted:{created_at}"


def task_accepted(
    task: Task, cust_id: str, created_at: int, batch: tuple[str, int] | None = None, *, key: str | None
) -> Message:
    """Return the acceptance event of a task.

    `key` is its idempotency key, and `batch` is (batch_id, index) if it is an item of a batch.

    The body is assembled from JSON that is canonical already, because parsing it again would be most of the cost. Ids,
    customer ids and times need no escaping.
    """
    webhook = "webhook" if task.has_callback else "none"
    place = b"" if batch is None else b'"batch_id":"%b","batch_index":%d,' % (batch[0].encode(), batch[1])
    named = b"" if key is None else b'"idempotency_key":%b,' % _encode(key)
    task_id = task.task_id.encode()
    time = rfc3339(created_at).encode()
    event_id = acceptance_id(task.task_id, created_at)
    body = (
        b'{"specversion":"1.0","id":"%b","source":"/asg/ingest","type":"io.asgrefinery.task.accepted",'
        b'"subject":"%b","time":"%b","datacontenttype":"application/json",'
        b'"data":{"task_id":"%b","cust_id":"%b","created_at":"%b",%b%b%b}'
        % (event_id.encode(), task_id, time, task_id, cust_id.encode(), time, named, place, bytes(task.body)[1:])
    )
    return Message(
        exchange=EVENTS,
        routing_key=f"task.accepted.{task.type}.{webhook}",
        body=body,
        message_id=event_id,
        content_type=CLOUDEVENTS,
        timestamp=created_at // 1000,
    )


def batch_accepted(submission: Submission, created_at: int, replayed: Sequence[str]) -> Message:
    """Return the acceptance event of a batch, published after all its tasks' events.

    `replayed` are the ids of tasks that were accepted before.
    """
    with_callback = any(task.has_callback for task in submission.tasks)
    data = {
        "batch_id": submission.id,
        "cust_id": submission.cust_id,
        "created_at": rfc3339(created_at),
        **({} if submission.key is None else {"idempotency_key": submission.key}),
        "task_count": len(submission.tasks),
        "task_ids": [task.task_id for task in submission.tasks],
        "replayed_task_ids": list(replayed),
    }
    key = f"batch.accepted.{'webhook' if with_callback else 'none'}"
    event_id = acceptance_id(submission.id, created_at)
    return _event(BATCH_ACCEPTED, event_id, submission.id, created_at, data, key, with_callback)


def duplicate(original: Entry, repeat: Submission, message_id: str) -> Message:
    """Return the event of a direct submission that repeats a durable one.

    Its id names the acceptance that it repeats, and its body: one message_id may come with several bodies.
    """
    kind = "batch_id" if repeat.kind is SubmissionKind.BATCH else "task_id"
    data = {
        kind: original.id,
        "cust_id": original.cust_id,
        "created_at": rfc3339(original.created_at),
        "message_id": message_id,
        "idempotency_key": repeat.key or message_id,
        "payload_mismatch": repeat.fingerprint != original.fingerprint,
    }
    digest = hashlib.sha256(f"{original.cust_id}:{message_id}:".encode() + repeat.fingerprint).hexdigest()[:32]
    event_id = f"{original.id}:duplicate:{original.created_at}:{digest}"
    return _event(
        DUPLICATE, event_id, original.id, original.created_at, data, _report_key("duplicate", original.cust_id), False
    )


def rejected(
    cust_id: str,
    message_id: str,
    now: int,
    error: InvalidSubmission,
    digest: str,
    producer: str | None = None,
    key: str | None = None,
) -> Message:
    """Return the event of a direct submission that was rejected; the submission itself is in `ingest.dead`.

    `cust_id` is the customer in its routing key, or empty. `producer` receives the report, if it is another.
    `key` is the idempotency key, if the body was read.

    Its id names the reason, because a submission that is redriven may be rejected for another one, and the whole
    submission (`digest`): one message_id, or none, may come with several wrong bodies.
    """
    data = {
        "cust_id": cust_id,
        "message_id": message_id,
        **({} if key is None else {"idempotency_key": key}),
        "reason": error.reason,
        "error": error.message,
        "errors": error.errors,
    }
    return _event(
        REJECTED,
        f"rejected:{error.reason}:{digest}",
        cust_id,
        now,
        data,
        _report_key("rejected", cust_id if producer is None else producer),
        False,
    )


def traced(event: Message, trace: Trace) -> Message:
    """Return a copy of the event with a trace context.

    It is CloudEvents' distributed tracing extension in the body, and also in the message's headers.
    """
    body = b"{" + trace.json_members() + event.body[1:]
    return msgspec.structs.replace(event, body=body, headers=event.headers | trace.headers())


def _report_key(what: str, cust_id: str) -> str:
    """Return the routing key of a report to a direct producer. A customer's name is always the third word."""
    return f"submission.{what}.{cust_id}" if cust_id else f"submission.{what}"


def _event(
    type_: str,
    event_id: str,
    subject: str,
    time: int,
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
        "time": rfc3339(time),
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
        timestamp=time // 1000,
    )
