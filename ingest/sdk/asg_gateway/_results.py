"""The results of submissions. They are immutable and can be read like the JSON of the API."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NoReturn

SEPARATOR = ","
"""Between the ids of the parts of a split batch."""


class Result(dict[str, Any]):
    """A dict of the JSON keys that cannot be changed. It is a dict so that `json.dumps` and others take it.

    Subclasses are frozen dataclasses; their fields are not all in the dict.
    """

    def __post_init__(self) -> None:
        super().update(self._json())

    def _json(self) -> dict[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be changed; dict(result) is a copy that can")

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    update = setdefault = pop = popitem = clear = _refuse  # type: ignore[assignment]


@dataclass(frozen=True, repr=False)
class TaskResult(Result):
    """An accepted task.

    Attributes:
        task_id: the id, which is the same for every call with the same key.
        status: `pending`.
        created_at: when it was first accepted, RFC 3339.
        idempotent: whether it was accepted before this call.
        payload_mismatch: whether the original body differs from this one; the original stays in force.
        expires_at: the key is remembered at least until then; None for a look-up.
        request_id: names the request in the gateway's log.
    """

    task_id: str
    status: str
    created_at: str
    idempotent: bool = False
    payload_mismatch: bool = False
    expires_at: datetime | None = field(default=None, compare=False)
    request_id: str | None = field(default=None, compare=False)

    def _json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"task_id": self.task_id, "status": self.status, "created_at": self.created_at}
        return data | ({"idempotent": True} if self.idempotent else {})


@dataclass(frozen=True, repr=False)
class BatchResult(Result):
    """An accepted batch.

    Attributes:
        batch_id: the id; for a split batch, the ids of its parts, separated by commas, which `get_batch` accepts.
        task_count: the number of tasks in all parts.
        status: `accepted`.
        task_ids: the ids of the tasks, in order.
        created_at: when it was first accepted, RFC 3339; None unless it was looked up.
        idempotent: whether all of it was accepted before this call.
        replayed: how many of its tasks are replays: accepted before this call, or with the key of an earlier task of
            the batch. None for a look-up, and if the gateway is too old to say it.
        payload_mismatch: whether the original body differs from this one; the original stays in force.
        expires_at: the key is remembered at least until then; None for a look-up.
        request_id: names the request in the gateway's log.
        parts: the results of the single requests, if the batch was too large for one.
    """

    batch_id: str
    task_count: int
    status: str
    task_ids: tuple[str, ...] = ()
    created_at: str | None = None
    idempotent: bool = False
    payload_mismatch: bool = False
    expires_at: datetime | None = field(default=None, compare=False)
    request_id: str | None = field(default=None, compare=False)
    parts: tuple["BatchResult", ...] = ()
    replayed: int | None = field(default=None, compare=False)

    @property
    def batch_ids(self) -> tuple[str, ...]:
        """The ids of all parts."""
        return tuple(part.batch_id for part in self.parts) or (self.batch_id,)

    def _json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"batch_id": self.batch_id, "task_count": self.task_count, "status": self.status}
        return data | ({"idempotent": True} if self.idempotent else {})


def joined(parts: Sequence[BatchResult]) -> BatchResult:
    """Join the results of the parts of a batch, at least one."""
    if len(parts) == 1:
        return parts[0]
    replayed = [part.replayed for part in parts if part.replayed is not None]
    return BatchResult(
        batch_id=SEPARATOR.join(part.batch_id for part in parts),
        task_count=sum(part.task_count for part in parts),
        status=parts[0].status,
        task_ids=tuple(task_id for part in parts for task_id in part.task_ids),
        created_at=parts[0].created_at,
        replayed=sum(replayed) if len(replayed) == len(parts) else None,
        idempotent=all(part.idempotent for part in parts),
        payload_mismatch=any(part.payload_mismatch for part in parts),
        expires_at=min((part.expires_at for part in parts if part.expires_at), default=None),
        request_id=parts[-1].request_id,
        parts=tuple(parts),
    )
