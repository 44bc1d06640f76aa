"""The contents of events and dead letters, as types. The JSON Schemas in the AsyncAPI document are made from them.

For speed, events and dead letters are encoded without these types; tests check every real one against its type.
Fields may be added and are never removed, so consumers must ignore fields that they do not know.
"""

from typing import Annotated, Final, Literal, NotRequired

from pydantic import Field, StringConstraints
from typing_extensions import TypedDict

from ingest.domain.errors import MAX_FIELD_ERRORS, Reason
from ingest.domain.validation import MAX_BATCH, CallbackUrl, HttpsUrl, LabelSpec, TaskType

_ID: Final = "[0-7][0-9a-hjkmnp-tv-z]{25}"
TaskId = Annotated[str, StringConstraints(pattern=rf"^tsk_{_ID}$")]
BatchId = Annotated[str, StringConstraints(pattern=rf"^bat_{_ID}$")]
CustId = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]{1,64}$")]
Time = Annotated[
    str,
    Field(description="RFC 3339, UTC, whole seconds.", json_schema_extra={"format": "date-time"}),
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"),
]
IdempotencyKey = Annotated[str, Field(description="The key under which it was submitted.")]
MessageId = Annotated[str, Field(description="The submission's AMQP message_id.")]


class _CloudEvent(TypedDict):
    specversion: Literal["1.0"]
    source: Literal["/asg/ingest"]
    time: Time
    datacontenttype: Literal["application/json"]
    traceparent: NotRequired[
        Annotated[
            str,
            Field(description="W3C Trace Context, if the submission came with one or tracing is on."),
            StringConstraints(pattern="^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"),
        ]
    ]
    tracestate: NotRequired[Annotated[str, Field(max_length=512)]]


class TaskAcceptedData(TypedDict):
    """The whole task with its defaults, its customer, and its batch."""

    task_id: TaskId
    cust_id: CustId
    created_at: Time
    idempotency_key: NotRequired[IdempotencyKey]
    batch_id: NotRequired[BatchId]
    batch_index: NotRequired[Annotated[int, Field(ge=0, lt=MAX_BATCH, description="From 0.")]]
    type: TaskType
    data_url: HttpsUrl
    label_spec: LabelSpec
    consensus_threshold: Annotated[int, Field(ge=2, le=10)]
    callback_url: NotRequired[CallbackUrl]


class TaskAccepted(_CloudEvent):
    """A task was accepted. Delivered at least once; copies have the same `id`, so drop repeats by `id`.

    If the key is accepted again after its retention, that acceptance has another `id`.
    """

    id: Annotated[str, StringConstraints(pattern=rf"^tsk_{_ID}:accepted:[0-9]+$")]
    type: Literal["io.asgrefinery.task.accepted"]
    subject: TaskId
    data: TaskAcceptedData


class BatchAcceptedData(TypedDict):
    """The batch and its tasks, in order."""

    batch_id: BatchId
    cust_id: CustId
    created_at: Time
    idempotency_key: NotRequired[IdempotencyKey]
    task_count: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    task_ids: Annotated[
        list[TaskId],
        Field(min_length=1, max_length=MAX_BATCH, description="In order; items with the same key share an id."),
    ]
    replayed_task_ids: Annotated[
        list[TaskId], Field(max_length=MAX_BATCH, description="The tasks that were accepted before.")
    ]


class BatchAccepted(_CloudEvent):
    """A batch was accepted; the events of all its tasks were published before."""

    id: Annotated[str, StringConstraints(pattern=rf"^bat_{_ID}:accepted:[0-9]+$")]
    type: Literal["io.asgrefinery.batch.accepted"]
    subject: BatchId
    data: BatchAcceptedData


class DuplicateData(TypedDict):
    """The original: `task_id` or `batch_id`, and its time."""

    task_id: NotRequired[TaskId]
    batch_id: NotRequired[BatchId]
    cust_id: CustId
    created_at: Time
    message_id: MessageId
    idempotency_key: NotRequired[IdempotencyKey]
    payload_mismatch: Annotated[bool, Field(description="The body differs; the original body counts.")]


class SubmissionDuplicate(_CloudEvent):
    """A direct submission repeats one that was accepted. This event is its only effect."""

    id: Annotated[str, StringConstraints(pattern=rf"^(tsk|bat)_{_ID}:duplicate:[0-9]+:[0-9a-f]{{32}}$")]
    type: Literal["io.asgrefinery.submission.duplicate"]
    subject: TaskId | BatchId
    data: DuplicateData


class FieldFault(TypedDict):
    """One error in one field; the sentence starts with the field's path."""

    field: str
    error: str


FieldFaults = Annotated[list[FieldFault], Field(max_length=MAX_FIELD_ERRORS)]


class RejectedData(TypedDict):
    """Why it was rejected, as a code and in words."""

    cust_id: Annotated[str, Field(description="Empty if the routing key names no customer.")]
    message_id: Annotated[MessageId, Field(description="Empty if there was none.")]
    idempotency_key: NotRequired[IdempotencyKey]
    reason: Reason
    error: str
    errors: FieldFaults


class SubmissionRejected(_CloudEvent):
    """A direct submission was rejected; it is in `ingest.dead`."""

    id: Annotated[str, StringConstraints(pattern="^rejected:[a-z_]+:[0-9a-f]{32}$")]
    type: Literal["io.asgrefinery.submission.rejected"]
    subject: NotRequired[CustId]
    data: RejectedData


class RejectedSubmission(TypedDict):
    """The submission as it was sent; its body as text, or in base64 if it is not UTF-8.

    In the header `x-ingest-envelope` both are missing: the body of the message is then the submission's body.
    """

    queue: str
    routing_key: str
    message_id: str | None
    content_type: str | None
    type: Annotated[str | None, Field(description="The AMQP property.")]
    user_id: Annotated[str | None, Field(description="The AMQP user, checked by RabbitMQ.")]
    timestamp: NotRequired[Annotated[int | None, Field(ge=0, description="The AMQP property, in Unix seconds.")]]
    body: NotRequired[str]
    body_base64: NotRequired[Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]]


class DeadLetter(TypedDict):
    """A rejected submission in `ingest.dead`, with everything that is needed to submit it again.

    This is the body of the message, or, if that would be too large for the broker, the header `x-ingest-envelope`.
    """

    reason: Reason
    error: str
    errors: FieldFaults
    submission: RejectedSubmission


class TrimmedSubmission(TypedDict):
    """The properties of the submission as it was sent."""

    queue: Annotated[str | None, Field(description="null if it is not known.")]
    routing_key: str
    message_id: str | None
    content_type: str | None
    type: Annotated[str | None, Field(description="The AMQP property.")]
    user_id: Annotated[str | None, Field(description="The AMQP user, checked by RabbitMQ.")]
    timestamp: Annotated[int | None, Field(ge=0, description="The AMQP property, in Unix seconds.")]


class RemovedBody(TypedDict):
    """The body that was removed, and when."""

    at: Time
    body_bytes: Annotated[int, Field(ge=0)]
    body_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class TrimmedDeadLetter(TypedDict):
    """A dead letter whose body was removed by `ingest dlq trim` to save disk. It cannot be submitted again."""

    id: Annotated[str, Field(description="The id that it had before.")]
    reason: Annotated[str, Field(max_length=64, description="A Reason, or the broker's, such as `expired`.")]
    error: Annotated[str, Field(max_length=200)]
    errors: Annotated[list[FieldFault], Field(max_length=0)]
    submission: TrimmedSubmission
    trimmed: RemovedBody
