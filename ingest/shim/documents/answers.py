"""The bodies of answers, as types; tests hold the real ones to them."""

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from ingest.domain.event_data import BatchId, FieldFaults, TaskId, Time
from ingest.domain.validation import MAX_BATCH

_CLOSED = ConfigDict(extra="forbid")
_OPEN = ConfigDict(extra="allow")


class TaskAnswer(TypedDict):
    """A task that was accepted. `idempotent` on a replay."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]

    task_id: TaskId
    status: Literal["pending"]
    created_at: Annotated[Time, Field(description="When it was first accepted.")]
    idempotent: NotRequired[Literal[True]]


class BatchAnswer(TypedDict):
    """A batch that was accepted. `idempotent` on a replay, `task_ids` where preferred."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]

    batch_id: BatchId
    task_count: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    status: Literal["accepted"]
    task_ids: NotRequired[Annotated[list[TaskId], Field(description="In the order of the tasks.")]]
    idempotent: NotRequired[Literal[True]]


class Task(TypedDict):
    """A task, as it is remembered."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]

    task_id: TaskId
    status: Literal["pending"]
    created_at: Time


class Batch(TypedDict):
    """A batch, as it is remembered."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]

    batch_id: BatchId
    task_count: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    status: Literal["accepted"]
    created_at: Time
    task_ids: Annotated[list[TaskId], Field(description="In the order of the tasks.")]


class Error(TypedDict):
    """What is wrong, as a sentence; `errors` where several fields are."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]

    error: str
    errors: NotRequired[FieldFaults]


class Healthy(TypedDict):
    """The process answers."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    status: Literal["ok"]


class Ready(TypedDict):
    """Submissions can be taken. Further fields tell the state of each part."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    status: Literal["ok"]


class NotReady(TypedDict):
    """Submissions cannot be taken. Further fields tell the state of each part."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    error: str
