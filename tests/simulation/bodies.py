"""What clients send: bodies, keys and the ids that belong to them."""

import json
from typing import Any, Final

from ingest.domain.identity import SubmissionKind, keyed_id
from tests.simulation.schedule import Submit

WEBHOOK: Final = "https://hooks.example/x"


def message_id(submit: Submit) -> str:
    """The message_id of a direct submission without a key."""
    return f"m{int(submit.at * 1000)}"


def task_of(body: int, index: int = 0, key: str | None = None) -> dict[str, Any]:
    """One task's JSON; every `body` and `index` is another task."""
    task: dict[str, Any] = {
        "type": "sentiment",
        "data_url": f"https://data.example/{body}/{index}",
        "label_spec": {"question": "q?", "options": ["a", "b"]},
    }
    if body == 2:
        task["callback_url"] = WEBHOOK
    if key is not None:
        task["idempotency_key"] = key
    return task


def body_of(submit: Submit) -> bytes:
    """The body of a submission."""
    key = submit.key if not submit.direct else None
    if not submit.items:
        return json.dumps(task_of(submit.body, key=key)).encode()
    tasks = [task_of(submit.body, index, submit.item_key if index == 0 else None) for index in range(submit.items)]
    body: dict[str, Any] = {"tasks": tasks}
    if key is not None:
        body["idempotency_key"] = key
    return json.dumps(body).encode()


def task_id(customer: str, key: str) -> str:
    """The id of a keyed task."""
    return keyed_id(SubmissionKind.TASK, customer, key)


def batch_id(customer: str, key: str) -> str:
    """The id of a keyed batch."""
    return keyed_id(SubmissionKind.BATCH, customer, key)
