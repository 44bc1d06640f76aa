"""Decodes events from CloudEvents 1.0 in structured JSON. Fields that are not known are ignored."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from asg_gateway._errors import InvalidEventError
from asg_gateway.amqp._events import (
    BatchAccepted,
    Event,
    SubmissionDuplicate,
    SubmissionRejected,
    TaskAccepted,
    UnknownEvent,
)


def decode(body: bytes) -> Event:
    """Return the event in the body of a message. Raises InvalidEventError, which says what is wrong."""
    envelope = _parsed(body)
    reader = _Reader(envelope)
    version = reader.text("specversion")
    if version != "1.0":
        raise InvalidEventError(f"the event has specversion {version[:20]!r} instead of 1.0")
    event_type = reader.text("type")
    common = {
        "id": reader.text("id"),
        "event_type": event_type,
        "time": reader.time("time"),
        "source": reader.text("source"),
        "subject": reader.optional("subject", str),
        "traceparent": reader.optional("traceparent", str),
        "tracestate": reader.optional("tracestate", str),
    }
    if not common["id"]:
        raise InvalidEventError("the event has an empty id")
    if event_type not in _DECODERS:
        data = envelope.get("data", {})
        return UnknownEvent(**common, data=data if isinstance(data, dict) else {"data": data})
    data = reader.value("data", dict)
    return _DECODERS[event_type](_Reader(data, "data."), {**common, "data": data})


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidEventError(f"the message is not JSON: {error}") from None
    if not isinstance(envelope, dict):
        raise InvalidEventError("the message is not a JSON object")
    return envelope


class _Reader:
    """Reads the fields of one JSON object. `prefix` is where it is, for the errors."""

    def __init__(self, fields: Mapping[str, Any], prefix: str = "") -> None:
        self._fields = fields
        self._prefix = prefix

    def value(self, name: str, kind: type) -> Any:
        if name not in self._fields:
            raise InvalidEventError(f"the event has no {self._prefix}{name}")
        value = self._fields[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidEventError(f"{self._prefix}{name} of the event is not of type {kind.__name__}")
        return value

    def optional(self, name: str, kind: type) -> Any:
        return None if self._fields.get(name) is None else self.value(name, kind)

    def text(self, name: str) -> str:
        value: str = self.value(name, str)
        return value

    def time(self, name: str) -> datetime:
        try:
            time = datetime.fromisoformat(self.text(name))
        except ValueError:
            time = datetime.min  # noqa: DTZ901 - has no time zone, so the next check refuses it
        if time.tzinfo is None:
            raise InvalidEventError(f"{self._prefix}{name} of the event is not a time like 2026-04-09T12:00:00Z")
        return time

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.value(name, list)
        if not all(isinstance(value, str) for value in values):
            raise InvalidEventError(f"{self._prefix}{name} of the event is not a list of strings")
        return tuple(values)

    def field_errors(self, name: str) -> tuple[tuple[str, str], ...]:
        faults = self.value(name, list)
        readers = [_Reader(fault if isinstance(fault, dict) else {}, f"{self._prefix}{name}[].") for fault in faults]
        return tuple((reader.text("field"), reader.text("error")) for reader in readers)


def _task_accepted(data: _Reader, common: dict[str, Any]) -> Event:
    return TaskAccepted(
        **common,
        task_id=data.text("task_id"),
        cust_id=data.text("cust_id"),
        created_at=data.time("created_at"),
        task_type=data.text("type"),
        data_url=data.text("data_url"),
        label_spec=data.value("label_spec", dict),
        consensus_threshold=data.value("consensus_threshold", int),
        callback_url=data.optional("callback_url", str),
        batch_id=data.optional("batch_id", str),
        batch_index=data.optional("batch_index", int),
        idempotency_key=data.optional("idempotency_key", str),
    )


def _batch_accepted(data: _Reader, common: dict[str, Any]) -> Event:
    return BatchAccepted(
        **common,
        batch_id=data.text("batch_id"),
        cust_id=data.text("cust_id"),
        created_at=data.time("created_at"),
        task_count=data.value("task_count", int),
        task_ids=data.texts("task_ids"),
        replayed_task_ids=data.texts("replayed_task_ids"),
        idempotency_key=data.optional("idempotency_key", str),
    )


def _duplicate(data: _Reader, common: dict[str, Any]) -> Event:
    return SubmissionDuplicate(
        **common,
        cust_id=data.text("cust_id"),
        message_id=data.text("message_id"),
        idempotency_key=data.optional("idempotency_key", str),
        created_at=data.time("created_at"),
        payload_mismatch=data.value("payload_mismatch", bool),
        task_id=data.optional("task_id", str),
        batch_id=data.optional("batch_id", str),
    )


def _rejected(data: _Reader, common: dict[str, Any]) -> Event:
    return SubmissionRejected(
        **common,
        cust_id=data.text("cust_id"),
        message_id=data.text("message_id"),
        idempotency_key=data.optional("idempotency_key", str),
        reason=data.text("reason"),
        error=data.text("error"),
        errors=data.field_errors("errors"),
    )


_DECODERS: Final[Mapping[str, Callable[[_Reader, dict[str, Any]], Event]]] = {
    TaskAccepted.TYPE: _task_accepted,
    BatchAccepted.TYPE: _batch_accepted,
    SubmissionDuplicate.TYPE: _duplicate,
    SubmissionRejected.TYPE: _rejected,
}
