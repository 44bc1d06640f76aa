"""The HTTP contract without I/O: it builds requests and reads answers.

Keys are sent in the body, because a header cannot represent every key that the gateway accepts.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx

from asg_gateway._errors import BY_STATUS, DISABLED, APIError, CustomerDisabledError, ServerError
from asg_gateway._results import SEPARATOR, BatchResult, TaskResult
from asg_gateway._tasks import encode, encode_item, part_key, split
from asg_gateway._version import __version__

BASE_URL = "https://api.asgrefinery.io"
USER_AGENT = f"asg-gateway-python/{__version__} httpx/{httpx.__version__} python/{platform.python_version()}"


@dataclass(frozen=True)
class Call:
    """One request. It can be repeated safely, because every POST has a key.

    `first_index` is the index of its first task in the caller's list.
    """

    method: str
    path: str
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    first_index: int = 0


def client_options(api_key: str, base_url: str) -> dict[str, Any]:
    """Keyword arguments for httpx's clients. Raises ValueError for an invalid key or URL."""
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError("api_key must be printable ASCII without spaces")
    if not _is_base_url(base_url):
        raise ValueError(f"base_url must be like {BASE_URL}, without credentials, query or fragment")
    headers = {"Authorization": f"Bearer {api_key}", "User-Agent": USER_AGENT}
    return {"base_url": base_url, "headers": headers}


def task_call(
    task_type: str,
    data_url: str,
    label_spec: Mapping[str, Any],
    consensus_threshold: int | None,
    callback_url: str | None,
    key: str,
) -> Call:
    """Return the request that submits a task. Raises ValueError or TypeError if JSON cannot represent it."""
    body = {
        "type": task_type,
        "data_url": data_url,
        "label_spec": label_spec,
        "consensus_threshold": consensus_threshold,
        "callback_url": callback_url,
        "idempotency_key": key,
    }
    content = encode({name: value for name, value in body.items() if value is not None})
    return Call("POST", "/v1/tasks", content, {"Content-Type": "application/json"})


def batch_calls(tasks: Sequence[Mapping[str, Any]], callback_url: str | None, key: str) -> list[Call]:
    """Return the requests that submit a batch.

    All are built before the first is sent, so that a task that cannot be sent stops the whole batch.

    Raises:
        ValueError: a task is too large, or JSON cannot represent a value.
        TypeError: JSON cannot represent a type.
    """
    parts = split(encode_item(index, task) for index, task in enumerate(tasks))
    first_index = 0
    headers = {"Content-Type": "application/json", "Prefer": "return=representation"}
    calls = []
    for index, part in enumerate(parts):
        envelope = {"idempotency_key": part_key(key, index) if len(parts) > 1 else key}
        if callback_url is not None:
            envelope["callback_url"] = callback_url
        content = b'%b,"tasks":[%b]}' % (encode(envelope)[:-1], b",".join(part))
        calls.append(Call("POST", "/v1/tasks/batch", content, headers, first_index))
        first_index += len(part)
    return calls


def task_lookup(task_id: str) -> Call:
    """Return the request that looks up a task by its id."""
    return Call("GET", f"/v1/tasks/{quote(task_id, safe='')}")


def batch_lookups(batch_id: str) -> list[Call]:
    """Return the requests that look up a batch by its id, one per part."""
    return [Call("GET", f"/v1/tasks/batch/{quote(part, safe='')}") for part in batch_id.split(SEPARATOR)]


def task_result(response: httpx.Response) -> TaskResult:
    """Read a 2xx answer. Raises APIError if it is not from the gateway."""
    data = _json_with(response, "task_id", "status", "created_at")
    return TaskResult(data["task_id"], data["status"], data["created_at"], **_common_fields(response, data))


def batch_result(response: httpx.Response) -> BatchResult:
    """Read a 2xx answer. Raises APIError if it is not from the gateway."""
    data = _json_with(response, "batch_id", "task_count", "status")
    return BatchResult(
        data["batch_id"],
        data["task_count"],
        data["status"],
        task_ids=tuple(data.get("task_ids", ())),
        created_at=data.get("created_at"),
        # A gateway that does not count them at least says whether all are replays.
        replayed=data.get("replayed", data["task_count"] if data.get("idempotent") else None),
        **_common_fields(response, data),
    )


def api_error(response: httpx.Response) -> APIError:
    """Return the error for an answer that is not 2xx."""
    message, errors = response.reason_phrase or "no reason given", ()
    try:
        data = response.json()
        message = str(data["error"])
        errors = tuple((str(fault["field"]), str(fault["error"])) for fault in data.get("errors", ()))
    except (ValueError, TypeError, KeyError):
        pass  # not an answer of the gateway, but perhaps of a proxy
    status = response.status_code
    kind = ServerError if status >= 500 else BY_STATUS.get(status, APIError)
    if status == 403 and message == DISABLED:
        kind = CustomerDisabledError
    return kind(status, message, errors, response.headers.get("X-Request-Id"), dict(response.headers))


def http_date(value: str) -> datetime | None:
    """Parse an HTTP date, which is always UTC (RFC 9110, section 5.6.7); None if it is not one."""
    try:
        return parsedate_to_datetime(value).replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def _is_base_url(value: str) -> bool:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL:
        return False
    # httpx would send credentials in the URL instead of the API key.
    extra = url.userinfo or url.query or url.fragment
    return url.scheme in ("https", "http") and bool(url.host) and not extra


def _json_with(response: httpx.Response, *names: str) -> dict[str, Any]:
    try:
        data = response.json()
    except ValueError:
        data = None
    if not isinstance(data, dict) or not all(name in data for name in names):
        message = f"the answer is not from the gateway: it has no {', '.join(names)}; check base_url"
        raise APIError(response.status_code, message, headers=dict(response.headers))
    return data


def _common_fields(response: httpx.Response, data: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that tasks and batches have in common."""
    headers = response.headers
    return {
        "idempotent": data.get("idempotent", False),
        "payload_mismatch": headers.get("Idempotency-Payload-Mismatch") == "true",
        "expires_at": http_date(headers.get("Idempotency-Key-Expires", "")),
        "request_id": headers.get("X-Request-Id"),
    }
