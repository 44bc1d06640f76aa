"""A submission: one validated task or batch with its ids, made from a JSON body."""

import math
from collections.abc import Set as AbstractSet
from typing import Any, cast

import msgspec

from ingest.domain import identity
from ingest.domain.errors import FieldError, InvalidSubmission, Reason, UnregisteredWebhook
from ingest.domain.identity import SubmissionKind
from ingest.domain.json_names import MAX_NESTING, repeated_name
from ingest.domain.json_structure import is_nested_deeper
from ingest.domain.validation import NOT_REGISTERED, BatchBody, TaskBody, validate_batch, validate_task

DEFAULT_THRESHOLD = 3
MAX_BODY = 8 * 1024 * 1024
"""Bytes of a body as it is sent, and of all tasks of a batch as canonical JSON."""
MAX_TASK = 256 * 1024
"""Bytes of one task as canonical JSON, which may be longer than what was sent: `1e15` becomes `1000000000000000.0`.

With both limits every message and event is well below the 16 MiB that RabbitMQ takes.
"""
BYTES_PER_TASK = 1024
"""Bytes of a submission that count as a further task when load is shared between customers."""

_TOO_DEEP = f"body is nested too deeply: at most {MAX_NESTING} levels of arrays and objects are allowed"
_MOST_EXAMINED = 64 * 1024
"""Bytes of a malformed body in which levels are counted: removing the strings of 8 MiB would take a second."""

_encode = msgspec.json.Encoder(order="sorted").encode


def _float(text: str) -> float:
    """Parse a number with a fraction or an exponent. msgspec takes 5 µs or more for some, such as `5e-324`."""
    value = float(text)
    if value in (math.inf, -math.inf):
        raise ValueError(f"number {text[:40]} is out of range")
    return value


_decode = msgspec.json.Decoder(float_hook=_float).decode


class Task(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One task. `body` is its canonical JSON object: sorted names, with defaults, without the idempotency key.

    `key` is the own key of an item of a batch. The key of a single task is that of its submission.
    """

    task_id: str
    type: str
    has_callback: bool
    keyed: bool
    body: msgspec.Raw
    key: str | None = None


class Submission(msgspec.Struct, frozen=True, gc=False):
    """A task or a batch of one customer.

    `tasks` has one entry per item, in order. A single task has one entry with the submission's own id. Items of a batch
    with the same key have the same task_id.
    """

    kind: SubmissionKind
    id: str
    cust_id: str
    key: str | None
    fingerprint: bytes
    tasks: tuple[Task, ...]


def decode_json(body: bytes) -> Any:
    """Decode JSON (RFC 8259: UTF-8, no NaN, no lone surrogates; RFC 7493: the names in an object are unique).

    If a name occurs twice, some parsers take the first value and some the last, so a proxy or a reader of the dead
    letter could see another task than this service.

    Raises:
        InvalidSubmission: MALFORMED, with what is wrong and where.
    """
    try:
        data = _decode(body)
        repeated = repeated_name(body, data)
    except RecursionError:
        raise InvalidSubmission(Reason.MALFORMED, _TOO_DEEP) from None
    except ValueError as error:  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors
        raise InvalidSubmission(Reason.MALFORMED, _malformed(body, error)) from None
    if repeated is not None:
        raise InvalidSubmission(Reason.MALFORMED, f"body has the name {repeated[:100]!r} twice in one object")
    return data


def _malformed(body: bytes, error: ValueError) -> str:
    """Return what is wrong with the body, as a sentence."""
    try:
        body.decode()
    except UnicodeDecodeError as undecodable:
        return f"body is not UTF-8 (byte {undecodable.start})"
    if not body.strip():
        return "body is empty, it must be a JSON object"
    # Some versions of Python decode more levels before they find another error.
    if is_nested_deeper(body[:_MOST_EXAMINED], MAX_NESTING):
        return _TOO_DEEP
    return f"body is not JSON: {str(error).removeprefix('JSON is malformed: ')}"


def task_submission(
    data: object, cust_id: str, webhooks: AbstractSet[str] | None, fallback_key: str | None = None
) -> Submission:
    """Validate a decoded task body and compute its id.

    Args:
        data: the decoded body.
        cust_id: the customer.
        webhooks: the customer's registered webhook URLs; None accepts any.
        fallback_key: the idempotency key if the body has none.

    Raises:
        InvalidSubmission: the body breaks a rule. UnregisteredWebhook: the only one that it breaks is about webhooks.
    """
    body = validate_task(data)
    _check_callbacks([("callback_url", body)], webhooks)
    key = body.get("idempotency_key", fallback_key)
    task_id = (
        identity.fresh_id(SubmissionKind.TASK) if key is None else identity.keyed_id(SubmissionKind.TASK, cust_id, key)
    )
    canonical, has_callback = _canonical(body, None)
    _check_size(canonical, "the task")
    task = Task(task_id, body["type"], has_callback, key is not None, msgspec.Raw(canonical))
    return Submission(SubmissionKind.TASK, task_id, cust_id, key, identity.fingerprint(canonical), (task,))


def batch_submission(
    data: object, cust_id: str, webhooks: AbstractSet[str] | None, fallback_key: str | None = None
) -> Submission:
    """Validate a decoded batch body and compute its id and its items' ids.

    Arguments and errors as `task_submission`.
    """
    body = validate_batch(data)
    items = body["tasks"]
    named = [(f"tasks[{index}].callback_url", item) for index, item in enumerate(items) if "callback_url" in item]
    _check_callbacks([("callback_url", body), *named], webhooks)
    key = body.get("idempotency_key", fallback_key)
    batch_id = (
        identity.fresh_id(SubmissionKind.BATCH)
        if key is None
        else identity.keyed_id(SubmissionKind.BATCH, cust_id, key)
    )
    shared = body.get("callback_url")
    tasks: list[Task] = []
    digest = []
    total = 0
    for index, item in enumerate(items):
        own = item.get("idempotency_key")
        task_id = (
            identity.item_id(batch_id, index) if own is None else identity.keyed_id(SubmissionKind.TASK, cust_id, own)
        )
        canonical, has_callback = _canonical(item, shared)
        _check_size(canonical, f"tasks[{index}]")
        total += len(canonical)
        tasks.append(Task(task_id, item["type"], has_callback, own is not None, msgspec.Raw(canonical), own))
        digest.append(canonical)
        if own is not None:
            digest.append(own.encode())
    if total > MAX_BODY:
        raise InvalidSubmission(
            Reason.TOO_LARGE, f"the tasks have {total} bytes as canonical JSON, at most {MAX_BODY} are allowed"
        )
    return Submission(
        SubmissionKind.BATCH, batch_id, cust_id, key, identity.fingerprint(b"\n".join(digest)), tuple(tasks)
    )


def _canonical(item: TaskBody, shared_callback: str | None) -> tuple[bytes, bool]:
    """Return the item's canonical JSON and whether it has a callback_url."""
    plain = cast("dict[str, Any]", {"consensus_threshold": DEFAULT_THRESHOLD, **item})
    plain.pop("idempotency_key", None)
    if shared_callback is not None:
        plain.setdefault("callback_url", shared_callback)
    return _encode(plain), "callback_url" in plain


def _check_size(canonical: bytes, what: str) -> None:
    if len(canonical) > MAX_TASK:
        message = f"{what} has {len(canonical)} bytes as canonical JSON, at most {MAX_TASK} are allowed"
        raise InvalidSubmission(Reason.TOO_LARGE, message)


def _check_callbacks(holders: list[tuple[str, TaskBody | BatchBody]], webhooks: AbstractSet[str] | None) -> None:
    if webhooks is None:
        return
    errors = [
        FieldError(field, f"{field} {NOT_REGISTERED}")
        for field, holder in holders
        if "callback_url" in holder and holder["callback_url"] not in webhooks
    ]
    if errors:
        raise UnregisteredWebhook(Reason.INVALID, errors[0].error, tuple(errors))
