"""Makes messages of tasks and batches, after checking what is certain to be rejected. Nothing here does I/O."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from aiormq import spec

from asg_gateway._checks import Fault, faults
from asg_gateway._errors import InvalidTaskError
from asg_gateway._tasks import encode, encode_item, part_key, split
from asg_gateway.amqp._producing.identity import batch_id, item_ids, task_id
from asg_gateway.amqp._producing.keys import checked_key, size_of
from asg_gateway.amqp._producing.sizes import added_bytes, size_fault
from asg_gateway.amqp._producing.urls import url_faults

PRIORITY: Final = 4
"""The service rejects a higher one; with a lower one, RabbitMQ 4.3 delivers the messages of all others first."""
_PERSISTENT: Final = 2
_CUST_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LAST: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_MAX_TRACE: Final = 512


@dataclass(frozen=True, slots=True)
class SubmittedTask:
    """A task that RabbitMQ has confirmed. The service accepts or rejects it later.

    Attributes:
        task_id: the id that the service gives it, which is the same for every call with the same key.
        key: its idempotency key.
    """

    task_id: str
    key: str


@dataclass(frozen=True, slots=True)
class SubmittedBatch:
    """A batch that RabbitMQ has confirmed. The service accepts or rejects it later.

    Attributes:
        batch_ids: the id that the service gives it; one per part if it was split.
        task_ids: the ids of its tasks, in order.
        key: its idempotency key.
        parts: the parts of a split batch, each with its own key; otherwise empty.
    """

    batch_ids: tuple[str, ...]
    task_ids: tuple[str, ...]
    key: str
    parts: tuple["SubmittedBatch", ...] = ()

    @property
    def batch_id(self) -> str:
        """The id; for a split batch, the ids of its parts, separated by commas, which `get_batch` accepts."""
        return ",".join(self.batch_ids)


class Message(NamedTuple):
    """A message to publish. Every attempt publishes the same one."""

    routing_key: str
    body: bytes
    properties: spec.Basic.Properties
    key: str


@dataclass(frozen=True)
class Origin:
    """When and within which trace a submission was made.

    Attributes:
        created_at: a datetime with a time zone, or whole Unix seconds; None for now.
        traceparent, tracestate: a W3C trace context, passed on into the events.

    Raises:
        ValueError, TypeError: a value is not valid.
    """

    created_at: datetime | int | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    def __post_init__(self) -> None:
        at = self.created_at
        if isinstance(at, datetime):
            if at.utcoffset() is None:
                raise ValueError("created_at has no time zone: use datetime.now(UTC), or whole Unix seconds")
            at = int(at.timestamp())
        if at is not None and (not isinstance(at, int) or isinstance(at, bool)):
            raise TypeError("created_at must be a datetime with a time zone, or an int: whole Unix seconds")
        if at is not None and not 0 <= at <= _LAST:
            raise ValueError("created_at must be a time from 1970 to 9999: whole Unix seconds, not milliseconds")
        for name, value in self.trace().items():
            if not isinstance(value, str) or not value.isascii() or len(value) > _MAX_TRACE:
                raise ValueError(f"{name} must be at most {_MAX_TRACE} ASCII characters, as in W3C Trace Context")

    def time(self, now: float) -> datetime:
        """Return when the submission was made; `now` is in Unix seconds."""
        at = self.created_at
        return at if isinstance(at, datetime) else datetime.fromtimestamp(int(now) if at is None else at, UTC)

    def trace(self) -> dict[str, str]:
        """Return the trace context as headers."""
        named = (("traceparent", self.traceparent), ("tracestate", self.tracestate))
        return {name: value for name, value in named if value is not None}


NOW: Final = Origin()


class Composer:
    """Makes the messages of one customer.

    Args:
        cust_id: the customer.
        user: the AMQP user.
        now: the time in Unix seconds.

    Raises:
        ValueError: `cust_id` cannot be that of a customer.
    """

    def __init__(self, cust_id: str, user: str, now: Callable[[], float] = time.time) -> None:
        if not _CUST_ID.fullmatch(cust_id):
            raise ValueError("cust_id must be 1 to 64 letters, digits, _ or -; by default it is the user of the URL")
        self.cust_id = cust_id
        self._user_id = user if user == cust_id else None  # RabbitMQ refuses any other one
        self._now = now

    def task(self, task: Mapping[str, Any], key: str, origin: Origin = NOW) -> tuple[Message, SubmittedTask]:
        """Return the message of a task, and its result.

        Raises:
            InvalidTaskError: the service would certainly reject it; `idempotency_key` is the key.
            ValueError, TypeError: the key is not valid or not that of the task, or JSON cannot represent a value.
        """
        checked_key(key)
        errors = faults(task, "the task") or url_faults(task)
        if not errors and task.get("idempotency_key", key) != key:
            raise ValueError("the task has another idempotency_key than the argument `key`: they must be equal")
        body = b"" if errors else _encoded(task)
        if not errors and (fault := size_fault(task, body, "the task")):
            errors = [fault]
        _raise_if(errors, key)
        return self._message("task", body, key, origin), SubmittedTask(task_id(self.cust_id, key), key)

    def batch(
        self, tasks: Iterable[Mapping[str, Any]], key: str, callback_url: str | None = None, origin: Origin = NOW
    ) -> tuple[list[Message], SubmittedBatch]:
        """Return the messages of a batch, more than one if it is above 1,000 tasks or 8 MiB, and its result.

        Errors are those of `task`; the fields have the index of the task in the whole batch.
        """
        checked_key(key)
        if callback_url is not None and not isinstance(callback_url, str):
            raise TypeError("callback_url must be a string or None")
        _raise_if(url_faults({} if callback_url is None else {"callback_url": callback_url}), key)
        items = list(tasks)
        if not items:
            _raise_if([("tasks", "tasks must have at least 1 task")], key)
        encoded = _encoded_items(items, added_bytes(callback_url), key)
        parts = split(encoded, added_bytes(callback_url))
        keys = [key] if len(parts) == 1 else [part_key(key, index, size_of) for index in range(len(parts))]
        tail = b"]}" if callback_url is None else b'],"callback_url":%b}' % encode(callback_url)
        messages, results, first = [], [], 0
        for own_key, part in zip(keys, parts, strict=True):
            body = b'{"tasks":[' + b",".join(part) + tail
            messages.append(self._message("batch", body, own_key, origin))
            own_id = batch_id(self.cust_id, own_key)
            ids = item_ids(self.cust_id, own_id, items[first : first + len(part)])
            results.append(SubmittedBatch((own_id,), ids, own_key))
            first += len(part)
        return messages, _joined(results, key)

    def _message(self, kind: str, body: bytes, key: str, origin: Origin) -> Message:
        properties = spec.Basic.Properties(
            content_type="application/json",
            delivery_mode=_PERSISTENT,
            priority=PRIORITY,
            message_id=key,
            timestamp=origin.time(self._now()),
            user_id=self._user_id,
            headers=None if origin is NOW else dict[str, Any](origin.trace()) or None,
        )
        return Message(f"{kind}.submitted.{self.cust_id}", body, properties, key)


def _encoded(task: Mapping[str, Any]) -> bytes:
    try:
        return encode(task)
    except RecursionError:
        raise ValueError("the task is nested too deeply, or contains itself") from None


def _encoded_items(items: Sequence[Mapping[str, Any]], added: int, key: str) -> list[bytes]:
    """Check and encode the tasks of a batch. Raises InvalidTaskError with the faults of all of them."""
    errors: list[Fault] = []
    encoded = []
    for index, item in enumerate(items):
        path = f"tasks[{index}]"
        item_errors = faults(item, path) or url_faults(item)
        if not item_errors:
            encoded.append(encode_item(index, item))
            if fault := size_fault(item, encoded[-1], path, added):
                errors.append((path, fault[1]))
            continue
        errors += [(f"{path}.{field}", f"{path}.{text}") if field else (path, text) for field, text in item_errors]
    _raise_if(errors, key)
    return encoded


def _raise_if(errors: Sequence[Fault], key: str) -> None:
    if errors:
        error = InvalidTaskError(errors)
        error.idempotency_key = key
        raise error


def _joined(parts: Sequence[SubmittedBatch], key: str) -> SubmittedBatch:
    if len(parts) == 1:
        return parts[0]
    return SubmittedBatch(
        batch_ids=tuple(part.batch_ids[0] for part in parts),
        task_ids=tuple(one for part in parts for one in part.task_ids),
        key=key,
        parts=tuple(parts),
    )
