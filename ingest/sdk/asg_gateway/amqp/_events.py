"""The events of the gateway as typed, immutable values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final

_PREFIX: Final = "io.asgrefinery."


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event. All copies of one event have the same `id`.

    Attributes:
        id: names the acceptance or report; the broker may deliver several copies.
        event_type: the CloudEvents type, such as `io.asgrefinery.task.accepted`.
        time: when it happened, UTC, whole seconds.
        source: who made it, `/asg/ingest`.
        subject: the id of the task or batch, or the customer; None if there is none.
        traceparent: the W3C trace context, or None.
        tracestate: the same.
        data: all fields of the event's data, also those that this version of the SDK does not know. Do not change it.
    """

    id: str
    event_type: str
    time: datetime
    source: str
    subject: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """An event of a type that this version of the SDK does not know; `data` has its fields."""


@dataclass(frozen=True, kw_only=True)
class TaskAccepted(Event):
    """A task was accepted.

    Attributes:
        task_id: its id.
        cust_id: its customer.
        created_at: when it was accepted, UTC, whole seconds.
        task_type: what kind of task it is, such as `sentiment`.
        data_url: what to label. It is a customer's text and may point into your own network.
        label_spec: the question and its options.
        consensus_threshold: how many equal answers are needed, 2 to 10.
        callback_url: where the result is sent, or None.
        batch_id: its batch, or None.
        batch_index: its position in the batch, from 0, or None.
        idempotency_key: the task's own key, or None.
    """

    TYPE: ClassVar[str] = f"{_PREFIX}task.accepted"
    task_id: str
    cust_id: str
    created_at: datetime
    task_type: str
    data_url: str
    label_spec: Mapping[str, Any] = field(hash=False)
    consensus_threshold: int
    callback_url: str | None = None
    batch_id: str | None = None
    batch_index: int | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class BatchAccepted(Event):
    """A batch was accepted; the events of all its tasks were published before.

    Attributes:
        batch_id: its id.
        cust_id: its customer.
        created_at: when it was accepted, UTC, whole seconds.
        task_count: the number of its tasks.
        task_ids: the ids of its tasks, in order; tasks with the same key share an id.
        replayed_task_ids: the tasks that were accepted before.
        idempotency_key: the batch's own key, or None.
    """

    TYPE: ClassVar[str] = f"{_PREFIX}batch.accepted"
    batch_id: str
    cust_id: str
    created_at: datetime
    task_count: int
    task_ids: tuple[str, ...]
    replayed_task_ids: tuple[str, ...]
    idempotency_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Report(Event):
    cust_id: str
    message_id: str
    idempotency_key: str | None = None

    @property
    def key(self) -> str:
        """The idempotency key, or, if the service does not know it, the message_id. Of `Producer` both are the same."""
        return self.message_id if self.idempotency_key is None else self.idempotency_key


@dataclass(frozen=True, kw_only=True)
class SubmissionDuplicate(_Report):
    """A direct submission repeats one that was accepted. This report is its only effect.

    Attributes:
        cust_id: the customer.
        message_id: the AMQP message_id of the repeat.
        idempotency_key: the key under which it was submitted, or None from a service of an earlier version.
        task_id: the original, if it is a task.
        batch_id: the original, if it is a batch.
        created_at: when the original was accepted, UTC, whole seconds.
        payload_mismatch: whether the bodies differ; the original body counts.
    """

    TYPE: ClassVar[str] = f"{_PREFIX}submission.duplicate"
    created_at: datetime
    payload_mismatch: bool
    task_id: str | None = None
    batch_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class SubmissionRejected(_Report):
    """A direct submission was rejected.

    Attributes:
        cust_id: the customer; empty if the routing key names none.
        message_id: the AMQP message_id of the submission; empty if it had none.
        idempotency_key: the key under which it was submitted, or None if the service could not read the body.
        reason: the code, such as `invalid`.
        error: what is wrong, as a sentence.
        errors: (field, sentence) of each invalid field, at most 100.
    """

    TYPE: ClassVar[str] = f"{_PREFIX}submission.rejected"
    reason: str
    error: str
    errors: tuple[tuple[str, str], ...] = ()
