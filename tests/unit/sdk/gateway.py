"""A fake gateway with scripted answers, and shortcuts to call it."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from asg_gateway import ASGGatewayClient, AsyncASGGatewayClient, TaskResult

TASK = {"task_id": "tsk_1", "status": "pending", "created_at": "2026-04-09T12:00:00Z"}
SPEC = {"question": "q?", "options": ["a", "b"]}
CALL: dict[str, Any] = {"task_type": "sentiment", "data_url": "https://a.example/x", "label_spec": SPEC}

Answer = httpx.Response | Exception


class Gateway:
    """An httpx transport that gives the answers in order, and records the requests and the pauses between them."""

    def __init__(self, *answers: Answer) -> None:
        self._answers: Iterator[Answer] = iter(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]

    def client(self, **options: Any) -> ASGGatewayClient:
        return ASGGatewayClient("secret-key", transport=httpx.MockTransport(self), sleep=self.pauses.append, **options)

    def async_client(self, **options: Any) -> AsyncASGGatewayClient:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        return AsyncASGGatewayClient("secret-key", transport=httpx.MockTransport(self), sleep=sleep, **options)


def submit(client: ASGGatewayClient, **changes: Any) -> TaskResult:
    return client.submit_task(**(CALL | changes))


def batch(count: int, number: int = 1, **headers: str) -> httpx.Response:
    """Return the answer to the `number`-th batch, which has `count` tasks. `_` in header names becomes `-`."""
    ids = [f"tsk_{number}_{i}" for i in range(count)]
    body = {"batch_id": f"bat_{number}", "task_count": count, "status": "accepted", "task_ids": ids}
    return httpx.Response(202, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})
