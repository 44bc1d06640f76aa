"""What the events and dead letters hold, as types: the JSON Schemas in the AsyncAPI document are made from these.

`events` and the worker's dead letters are written without them, for speed; tests hold every real one to its model.
Consumers are to ignore fields that they do not know: fields may be added, none is taken away.
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
MessageId = Annotated[str, Field(description="The submission's AMQP message_id.")]


class _CloudEvent(TypedDict):
    specversion: Literal["1.0"]
    source: Literal["/asg/ingest"]
    time: Time
    datacontenttype: Literal["application/json"]
    traceparent: NotRequired[
        Annotated[
            str,
            Field(description="W3C Trace Context of the submission, where it came with one or tracing is on."),
            StringConstraints(pattern="^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"),
        ]
    ]
    tracestate: NotRequired[Annotated[str, Field(max_length=512)]]


class TaskAcceptedData(TypedDict):
    """The whole task, defaults filled in, and where it comes from."""

    task_id: TaskId
    cust_id: CustId
    created_at: Time
    batch_id: NotRequired[BatchId]
    batch_index: NotRequired[Annotated[int, Field(ge=0, lt=MAX_BATCH, description="From 0.")]]
    type: TaskType
    data_url: HttpsUrl
    label_spec: LabelSpec
    consensus_threshold: Annotated[int, Field(ge=2, le=10)]
    callback_url: NotRequired[CallbackUrl]


class TaskAccepted(_CloudEvent):
    """A task was accepted. At least once, always under the same id: drop repeats by `id`."""

    id: Annotated[str, StringConstraints(pattern=rf"^tsk_{_ID}:accepted$")]
    type: Literal["io.asgrefinery.task.accepted"]
    subject: TaskId
    data: TaskAcceptedData


class BatchAcceptedData(TypedDict):
    """The batch and its tasks, in order."""

    batch_id: BatchId
    cust_id: CustId
    created_at: Time
    task_count: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    task_ids: Annotated[
        list[TaskId], Field(min_length=1, max_length=MAX_BATCH, description="In order; items with one key share one.")
    ]
    replayed_task_ids: Annotated[
        list[TaskId], Field(max_length=MAX_BATCH, description="Those that had been accepted before.")
    ]


class BatchAccepted(_CloudEvent):
    """A batch was accepted, and the events of all its tasks are out."""

    id: Annotated[str, StringConstraints(pattern=rf"^bat_{_ID}:accepted$")]
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
    payload_mismatch: Annotated[bool, Field(description="It was sent with another body; the original stands.")]


class SubmissionDuplicate(_CloudEvent):
    """A direct submission repeats one that was accepted; nothing happens but this."""

    id: Annotated[str, StringConstraints(pattern=rf"^(tsk|bat)_{_ID}:duplicate:[0-9a-f]{{32}}$")]
    type: Literal["io.asgrefinery.submission.duplicate"]
    subject: TaskId | BatchId
    data: DuplicateData


class Fault(TypedDict):
    """One thing wrong with one field; the sentence starts with the field's path."""

    field: str
    error: str


Faults = Annotated[list[Fault], Field(max_length=MAX_FIELD_ERRORS)]


class RejectedData(TypedDict):
    """Why it was refused, as a code and in words."""

    cust_id: Annotated[str, Field(description="Empty where the routing key told none.")]
    message_id: Annotated[MessageId, Field(description="Empty where there was none.")]
    reason: Reason
    error: str
    errors: Faults


class SubmissionRejected(_CloudEvent):
    """A direct submission was refused; it stands in `ingest.dead`."""

    id: Annotated[str, StringConstraints(pattern="^rejected:[0-9a-f]{32}$")]
    type: Literal["io.asgrefinery.submission.rejected"]
    subject: NotRequired[CustId]
    data: RejectedData


class RefusedSubmission(TypedDict):
    """The submission as it came; its body as text, or in base64 where it is not UTF-8.

    Neither is there where this stands in the header `x-ingest-envelope`: the message's body is then the submission's.
    """

    queue: str
    routing_key: str
    message_id: str | None
    content_type: str | None
    type: Annotated[str | None, Field(description="The AMQP property.")]
    user_id: Annotated[str | None, Field(description="As RabbitMQ had checked it.")]
    body: NotRequired[str]
    body_base64: NotRequired[Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]]


class DeadLetter(TypedDict):
    """A refused submission in `ingest.dead`, with all it takes to submit it again.

    The message's body; of one that would be too large for the broker, the header `x-ingest-envelope`.
    """

    reason: Reason
    error: str
    errors: Faults
    submission: RefusedSubmission
