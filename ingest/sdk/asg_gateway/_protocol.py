"""All that needs no IO: requests to make, answers to read, when to try again."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from asg_gateway._errors import BY_STATUS, APIError, ServerError, TransportError
from asg_gateway._results import BatchResult, TaskResult
from asg_gateway._tasks import encode, new_key, part_key, split
from asg_gateway._version import __version__

BASE_URL = "https://api.asgrefinery.io"
TIMEOUT = 30.0
MAX_RETRIES = 5
DEADLINE = 120.0

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 8.0
_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Call:
    """One request: safe to repeat, as every POST carries a key."""

    method: str
    path: str
    content: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()


def client_options(api_key: str, base_url: str, timeout: float) -> dict[str, Any]:
    """Keyword arguments for httpx's clients. Raises ValueError for a key or URL that cannot be right."""
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError("api_key must be the key as it was issued, without spaces")
    parts = urlsplit(base_url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"base_url must be like {BASE_URL}, it is {base_url!r}")
    headers = {"Authorization": f"Bearer {api_key}", "User-Agent": f"asg-gateway-python/{__version__}"}
    return {"base_url": base_url, "timeout": timeout, "headers": headers}


def task_call(
    task_type: str,
    data_url: str,
    label_spec: Mapping[str, Any],
    consensus_threshold: int | None,
    callback_url: str | None,
    idempotency_key: str | None,
) -> Call:
    """Submit one task."""
    body = {
        "type": task_type,
        "data_url": data_url,
        "label_spec": label_spec,
        "consensus_threshold": consensus_threshold,
        "callback_url": callback_url,
        "idempotency_key": new_key() if idempotency_key is None else idempotency_key,
    }
    return _post("/v1/tasks", {name: value for name, value in body.items() if value is not None})


def batch_calls(tasks: Sequence[Mapping[str, Any]], callback_url: str | None, key: str) -> list[Call]:
    """Submit a batch, in as many requests as it takes."""
    parts = list(split(tasks))
    calls = []
    for index, part in enumerate(parts):
        body: dict[str, Any] = {"tasks": part, "idempotency_key": part_key(key, index) if len(parts) > 1 else key}
        if callback_url is not None:
            body["callback_url"] = callback_url
        calls.append(_post("/v1/tasks/batch", body, ("Prefer", "return=representation")))
    return calls


def lookup_call(kind: str, id_: str) -> Call:
    """Ask for a task or batch by id."""
    return Call("GET", f"/v1/tasks/{'batch/' if kind == 'batch' else ''}{quote(id_, safe='')}")


def task_result(response: httpx.Response) -> TaskResult:
    data = response.json()
    return TaskResult(
        task_id=data["task_id"],
        status=data["status"],
        created_at=data["created_at"],
        idempotent=data.get("idempotent", False),
        payload_mismatch=_mismatch(response),
        request_id=response.headers.get("X-Request-Id"),
    )


def batch_result(response: httpx.Response) -> BatchResult:
    data = response.json()
    return BatchResult(
        batch_id=data["batch_id"],
        task_count=data["task_count"],
        status=data["status"],
        task_ids=tuple(data.get("task_ids", ())),
        idempotent=data.get("idempotent", False),
        payload_mismatch=_mismatch(response),
        request_id=response.headers.get("X-Request-Id"),
    )


class Attempts:
    """Decides after each attempt of one call: done, again after a pause, or an error.

    Args:
        max_retries: attempts after the first.
        deadline: seconds for all of them.
        clock: monotonic seconds.
    """

    def __init__(self, max_retries: int, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._left = max_retries
        self._clock = clock
        self._end = clock() + deadline
        self._pause = _FIRST_PAUSE

    def answered(self, response: httpx.Response) -> float | None:
        """None: it is an answer. Else seconds to wait. Raises APIError when it is time to give up."""
        if response.is_success:
            return None
        error = _error(response)
        if response.status_code not in _RETRIED:
            raise error
        return self._again(error, _retry_after(response))

    def failed(self, cause: httpx.TransportError) -> float:
        """Seconds to wait. Raises TransportError when it is time to give up."""
        error = TransportError(f"no answer from the gateway: {cause or type(cause).__name__}")
        error.__cause__ = cause
        return self._again(error, None)

    def _again(self, error: Exception, asked: float | None) -> float:
        pause = self._pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        pause = max(pause, asked or 0.0)
        if not self._left or self._clock() + pause > self._end:
            raise error
        self._left -= 1
        return pause


def _post(path: str, body: dict[str, Any], *headers: tuple[str, str]) -> Call:
    return Call("POST", path, encode(body), (("Content-Type", "application/json"), *headers))


def _mismatch(response: httpx.Response) -> bool:
    return bool(response.headers.get("Idempotency-Payload-Mismatch") == "true")


def _error(response: httpx.Response) -> APIError:
    message, errors = response.reason_phrase or "no reason given", ()
    try:
        data = response.json()
        message = str(data["error"])
        errors = tuple((str(each["field"]), str(each["error"])) for each in data.get("errors", ()))
    except (ValueError, TypeError, KeyError):
        pass  # not the gateway's own answer: a proxy's, say
    status = response.status_code
    kind = ServerError if status >= 500 else BY_STATUS.get(status, APIError)
    return kind(status, message, errors, response.headers.get("X-Request-Id"))


def _retry_after(response: httpx.Response) -> float | None:
    """RFC 9110, section 10.2.3: seconds or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
