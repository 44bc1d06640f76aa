"""A transport that plays the gateway for batches: one acceptance a key, all or none, errors as the real one's."""

import json
from typing import Any

import httpx
from asg_gateway import AsyncASGGatewayClient

MAX_ERRORS = 100


def task(name: str, **changes: Any) -> dict[str, Any]:
    spec = {"question": "Animal?", "options": ["cat", "dog"]}
    return {"type": "sentiment", "data_url": f"https://a.example/{name}", "label_spec": spec} | changes


class Gateway:
    """Refuses tasks whose data_url ends in `bad`; `accepted` has how often each item's key was accepted anew.

    Args:
        mute: does not say which tasks it refuses.
        fails: number of the request from which on it answers `failure`.
        failure: status and sentence.
    """

    def __init__(
        self, *, mute: bool = False, fails: int | None = None, failure: tuple[int, str] = (403, "quota exhausted")
    ) -> None:
        self.accepted: dict[str, int] = {}
        self.requests = 0
        self._batches: dict[str, list[str]] = {}
        self._mute = mute
        self._fails = fails
        self._failure = failure

    def client(self) -> AsyncASGGatewayClient:
        return AsyncASGGatewayClient("k", transport=httpx.MockTransport(self), max_retries=0)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self._fails is not None and self.requests >= self._fails:
            return httpx.Response(self._failure[0], json={"error": self._failure[1]})
        body = json.loads(request.content)
        assert 1 <= len(body["tasks"]) <= 1000
        wrong = [index for index, each in enumerate(body["tasks"]) if each["data_url"].endswith("bad")]
        if wrong:
            return self._refuse(wrong)
        replay = body["idempotency_key"] in self._batches
        ids = self._batches.setdefault(body["idempotency_key"], self._take(body))
        answer = {"batch_id": "bat_1", "task_count": len(ids), "status": "accepted", "task_ids": ids}
        return httpx.Response(200 if replay else 202, json=answer | ({"idempotent": True} if replay else {}))

    def _refuse(self, wrong: list[int]) -> httpx.Response:
        if self._mute:
            return httpx.Response(400, json={"error": f"body has {len(wrong)} errors, too many to list"})
        fields = [f"tasks[{index}].data_url" for index in wrong[:MAX_ERRORS]]
        errors = [{"field": field, "error": f"{field} must be good"} for field in fields]
        more = {"errors": errors} if len(errors) > 1 else {}
        return httpx.Response(400, json={"error": errors[0]["error"]} | more)

    def _take(self, body: dict[str, Any]) -> list[str]:
        ids = []
        for index, each in enumerate(body["tasks"]):
            key = each.get("idempotency_key", f"{body['idempotency_key']}#{index}")
            self.accepted[key] = self.accepted.get(key, 0) + (f"tsk_{key}" not in self._known())
            ids.append(f"tsk_{key}")
        return ids

    def _known(self) -> set[str]:
        return {id_ for ids in self._batches.values() for id_ in ids}
