"""Finds errors in a task that are certain without the service. The service decides in the end."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, get_args

from asg_gateway._tasks import Task, TaskType

Fault = tuple[str, str]
"""A field, and a sentence that starts with its name."""

_TYPES = get_args(TaskType)
_FIELDS = frozenset({*Task.__required_keys__, *Task.__optional_keys__})
_MAX_URL = 2_048
_MAX_KEY = 255


def faults(task: object, what: str = "the line") -> list[Fault]:
    """Return every error for which the service would certainly refuse the task.

    Args:
        task: the task. Mappings and tuples are fine, because the SDK encodes them as objects and arrays.
        what: names the task in the sentence for one that is not an object.
    """
    if not _is_mapping(task):
        return [("", f"{what} must be a JSON object")]
    errors = [(name, f"{name} is required") for name in ("type", "data_url", "label_spec") if name not in task]
    errors += [(name, f"{name} is not a known field") for name in task if name not in _FIELDS]
    errors += [(name, f"{name} {rule}") for name, rule in _field_errors(task)]
    return errors


def _is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, dict) or isinstance(value, Mapping)  # noqa: SIM101 - the first is much faster


def _field_errors(task: Mapping[str, Any]) -> Iterator[Fault]:
    if "type" in task and task["type"] not in _TYPES:
        yield "type", f"must be one of {', '.join(_TYPES)}"
    url = task.get("data_url", "https://")
    if not isinstance(url, str) or url[:8].lower() != "https://" or len(url) > _MAX_URL:
        yield "data_url", f"must be an https URL of at most {_MAX_URL} characters"
    if "label_spec" in task:
        yield from _label_spec_errors(task["label_spec"])
    threshold = task.get("consensus_threshold", 3)
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or threshold not in range(2, 11):
        yield "consensus_threshold", "must be an integer between 2 and 10"
    if not isinstance(task.get("callback_url", ""), str):
        yield "callback_url", "must be a string"
    key = task.get("idempotency_key", "k")
    if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY:
        yield "idempotency_key", f"must be 1 to {_MAX_KEY} printable characters"


def _label_spec_errors(spec: object) -> Iterator[Fault]:
    if not _is_mapping(spec):
        yield "label_spec", "must be an object"
        return
    question, options = spec.get("question"), spec.get("options")
    if not _is_text(question):
        yield "label_spec.question", "is required" if question is None else "must be a non-empty string"
    if not isinstance(options, list | tuple) or len(options) < 2:
        yield "label_spec.options", "is required" if options is None else "must have at least 2 entries"
    elif not all(_is_text(option) for option in options):
        yield "label_spec.options", "must be non-empty strings"
    elif len(set(options)) < 2:
        yield "label_spec.options", "must have at least 2 distinct entries"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
