"""A fake gateway for batches: it accepts a key once, refuses a batch whole, and words errors like the real one."""

import json
from typing import Any

import httpx
from asg_gateway import AsyncASGGatewayClient

MAX_ERRORS = 100


def task(name: str, **changes: Any) -> dict[str, Any]:
    spec = {"question": "Animal?", "options": ["cat", "dog"]}
    return {"type": "sentiment", "data_url": f"https://a.example/{name}", "label_spec": spec} | changes


class Gateway:
    """An httpx transport that refuses tasks whose data_url ends in `bad`.

    `accepted` counts for each item's key how often it was accepted as a new task.

    Args:
        omit_errors: do not say which tasks are refused.
        fail_from: number of the first request that is answered with `failure`, as are all later ones.
        failure: status and error sentence.
    """

    def __init__(
        self,
        *,
        omit_errors: bool = False,
        fail_from: int | None = None,
        failure: tuple[int, str] = (403, "quota exhausted"),
    ) -> None:
        self.accepted: dict[str, int] = {}
        self.requests = 0
        self._batches: dict[str, list[str]] = {}
        self._omit_errors = omit_errors
        self._fail_from = fail_from
        self._failure = failure

    def client(self) -> AsyncASGGatewayClient:
        return AsyncASGGatewayClient("k", transport=httpx.MockTransport(self), max_retries=0)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self._fail_from is not None and self.requests >= self._fail_from:
            return httpx.Response(self._failure[0], json={"error": self._failure[1]})
        body = json.loads(request.content)
        assert 1 <= len(body["tasks"]) <= 1000
        bad = [index for index, item in enumerate(body["tasks"]) if item["data_url"].endswith("bad")]
        if bad:
            return self._refuse(bad)
        is_replay = body["idempotency_key"] in self._batches
        ids = self._batches.setdefault(body["idempotency_key"], self._accept(body))
        answer = {"batch_id": "bat_1", "task_count": len(ids), "status": "accepted", "task_ids": ids}
        return httpx.Response(200 if is_replay else 202, json=answer | ({"idempotent": True} if is_replay else {}))

    def _refuse(self, bad: list[int]) -> httpx.Response:
        if self._omit_errors:
            return httpx.Response(400, json={"error": f"body has {len(bad)} errors, too many to list"})
        fields = [f"tasks[{index}].data_url" for index in bad[:MAX_ERRORS]]
        errors = [{"field": field, "error": f"{field} must be good"} for field in fields]
        listed = {"errors": errors} if len(errors) > 1 else {}
        return httpx.Response(400, json={"error": errors[0]["error"]} | listed)

    def _accept(self, body: dict[str, Any]) -> list[str]:
        known_ids = {task_id for ids in self._batches.values() for task_id in ids}
        ids = []
        for index, item in enumerate(body["tasks"]):
            key = item.get("idempotency_key", f"{body['idempotency_key']}#{index}")
            self.accepted[key] = self.accepted.get(key, 0) + (f"tsk_{key}" not in known_ids)
            ids.append(f"tsk_{key}")
        return ids
