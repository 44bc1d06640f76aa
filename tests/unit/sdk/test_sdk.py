"""The SDK against a transport that plays the gateway."""

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asg_gateway
import httpx
import pytest
from asg_gateway import ASGGatewayClient, AsyncASGGatewayClient, _tasks
from hypothesis import given, settings
from hypothesis import strategies as st

TASK = {"task_id": "tsk_1", "status": "pending", "created_at": "2026-04-09T12:00:00Z"}
SPEC = {"question": "q?", "options": ["a", "b"]}
Handler = Callable[[httpx.Request], httpx.Response]


class Gateway:
    """Answers in turn, remembers the requests and the pauses in between."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers: Iterator[httpx.Response | Exception] = iter(answers)
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


def submit(client: ASGGatewayClient, **changes: Any) -> asg_gateway.TaskResult:
    given: dict[str, Any] = {"task_type": "sentiment", "data_url": "https://a.example/x", "label_spec": SPEC}
    return client.submit_task(**(given | changes))


def batch(count: int, number: int = 1) -> httpx.Response:
    ids = [f"tsk_{number}_{i}" for i in range(count)]
    return httpx.Response(
        202, json={"batch_id": f"bat_{number}", "task_count": count, "status": "accepted", "task_ids": ids}
    )


def test_all_is_sorted_and_complete() -> None:
    """`__all__` is in order and every name is there."""
    public = [name for name in asg_gateway.__all__ if name != "__version__"]
    assert public == sorted(public, key=str.swapcase) or public == sorted(public)
    assert all(hasattr(asg_gateway, name) for name in asg_gateway.__all__)


def test_imports_nothing_of_the_service() -> None:
    """No module of the SDK imports `ingest`."""
    for path in Path(asg_gateway.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "ingest"]


def test_a_result_reads_like_a_dict_and_like_an_object() -> None:
    """Exactly the contract's keys, frozen, and the extra facts as attributes."""
    gateway = Gateway(httpx.Response(202, json=TASK, headers={"X-Request-Id": "r1"}))
    result = submit(gateway.client())
    assert dict(result) == TASK
    assert result["task_id"] == result.task_id == "tsk_1"
    assert (result.idempotent, result.request_id) == (False, "r1")
    assert repr(result) == "TaskResult(task_id='tsk_1', status='pending', created_at='2026-04-09T12:00:00Z')"
    with pytest.raises(AttributeError):
        result.task_id = "x"  # type: ignore[misc]


def test_what_is_sent() -> None:
    """The contract's body, the key as bearer, no fields that were not given."""
    gateway = Gateway(httpx.Response(202, json=TASK))
    submit(gateway.client(base_url="https://gateway.example/"), idempotency_key="k")
    (request,) = gateway.requests
    assert str(request.url) == "https://gateway.example/v1/tasks"
    assert request.headers["Authorization"] == "Bearer secret-key"
    assert request.headers["User-Agent"].startswith("asg-gateway-python/")
    body = {"type": "sentiment", "data_url": "https://a.example/x", "label_spec": SPEC, "idempotency_key": "k"}
    assert gateway.bodies == [body]


def test_one_key_for_all_attempts() -> None:
    """Without a key one is made, once a call."""
    answers: list[httpx.Response | Exception] = [
        httpx.ConnectError("refused"),
        httpx.Response(503),
        httpx.Response(200, json=TASK | {"idempotent": True}),
    ]
    gateway = Gateway(*answers, httpx.Response(202, json=TASK))
    client = gateway.client()
    assert submit(client).idempotent
    submit(client)
    keys = [body["idempotency_key"] for body in gateway.bodies]
    assert keys[0] == keys[1] == keys[2] != keys[3]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_retried_statuses(status: int) -> None:
    """Tried again, later and later; `Retry-After` is the least."""
    again = httpx.Response(status, headers={"Retry-After": "7"})
    gateway = Gateway(again, httpx.Response(status), httpx.Response(202, json=TASK))
    submit(gateway.client())
    assert gateway.pauses[0] == 7
    assert 0.25 <= gateway.pauses[1] <= 0.75


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, asg_gateway.InvalidRequestError),
        (401, asg_gateway.AuthenticationError),
        (403, asg_gateway.QuotaExhaustedError),
        (404, asg_gateway.NotFoundError),
        (413, asg_gateway.InvalidRequestError),
        (418, asg_gateway.APIError),
    ],
)
def test_final_statuses(status: int, error: type[asg_gateway.APIError]) -> None:
    """Raised at once, with the gateway's words."""
    fields = [{"field": "a", "error": "a is wrong"}, {"field": "b", "error": "b is wrong"}]
    gateway = Gateway(httpx.Response(status, json={"error": "a is wrong", "errors": fields}))
    with pytest.raises(error) as caught:
        submit(gateway.client())
    assert (caught.value.status, caught.value.message) == (status, "a is wrong")
    assert caught.value.errors == (("a", "a is wrong"), ("b", "b is wrong"))
    assert gateway.pauses == []


def test_gives_up_after_the_last_retry_and_at_the_deadline() -> None:
    """The last error is raised; a pause beyond the deadline is not begun."""
    gateway = Gateway(*[httpx.Response(503, json={"error": "away"})] * 3)
    with pytest.raises(asg_gateway.ServerError, match="503: away"):
        submit(gateway.client(max_retries=2))
    assert len(gateway.requests) == 3
    late = Gateway(httpx.Response(503, headers={"Retry-After": "60"}))
    with pytest.raises(asg_gateway.ServerError):
        submit(late.client(deadline=10))
    assert late.pauses == []


def test_no_answer_is_a_transport_error_without_the_key() -> None:
    """The cause is kept, the secret is not shown."""
    client = Gateway(httpx.ConnectError("refused")).client(max_retries=0)
    with pytest.raises(asg_gateway.TransportError, match="refused") as caught:
        submit(client)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert "secret-key" not in repr(client) + repr(caught.value)


def test_a_large_batch_is_split() -> None:
    """Parts of 1,000 with keys of their own; the result joins them in order."""
    gateway = Gateway(batch(1000, 1), batch(1000, 2), batch(1, 3))
    tasks = [{"n": i} for i in range(2001)]
    result = gateway.client().submit_batch(tasks, callback_url="https://a.example/h", idempotency_key="k")
    assert [body["idempotency_key"] for body in gateway.bodies] == ["k/0", "k/1", "k/2"]
    assert [task["n"] for body in gateway.bodies for task in body["tasks"]] == list(range(2001))
    assert (result.task_count, result.batch_ids) == (2001, ("bat_1", "bat_2", "bat_3"))
    assert result.task_ids[1000] == "tsk_2_0"
    assert {body["callback_url"] for body in gateway.bodies} == {"https://a.example/h"}


def test_a_batch_that_fits_is_one_request() -> None:
    """The given key is used as it is, and the result is the contract's."""
    gateway = Gateway(batch(2))
    result = gateway.client().submit_batch([{}, {}], idempotency_key="k")
    assert gateway.bodies == [{"tasks": [{}, {}], "idempotency_key": "k"}]
    assert dict(result) == {"batch_id": "bat_1", "task_count": 2, "status": "accepted"}


def test_a_split_batch_that_fails_half_way_says_how_to_resume() -> None:
    """What was accepted, and the key to go on with."""
    gateway = Gateway(batch(1000), httpx.Response(403, json={"error": "quota exhausted"}))
    with pytest.raises(asg_gateway.PartialBatchError) as caught:
        gateway.client().submit_batch([{}] * 1500)
    assert [part.task_count for part in caught.value.accepted] == [1000]
    assert gateway.bodies[0]["idempotency_key"] == f"{caught.value.idempotency_key}/0"
    assert isinstance(caught.value.__cause__, asg_gateway.QuotaExhaustedError)


@given(st.lists(st.integers(0, 3_000_000), max_size=30), st.text(min_size=1, max_size=255))
@settings(max_examples=30, deadline=None)
def test_splitting_keeps_order_and_limits(sizes: list[int], key: str) -> None:
    """Law: parts concatenate to the whole, none is too large, keys are distinct, stable and short enough."""
    tasks = [{"n": i, "pad": "x" * size} for i, size in enumerate(sizes)]
    parts = list(_tasks.split(tasks))
    assert [task for part in parts for task in part] == tasks
    assert all(len(_tasks.encode(part)) <= _tasks.MAX_BYTES for part in parts)
    keys = [_tasks.part_key(key, index) for index in range(3)]
    assert len(set(keys)) == 3
    assert keys == [_tasks.part_key(key, index) for index in range(3)]
    assert max(map(len, keys)) <= 255


@pytest.mark.parametrize(("key", "url"), [("", "https://a.example"), ("a b", "https://a.example"), ("k", "a.example")])
def test_wrong_arguments_are_told_at_once(key: str, url: str) -> None:
    """A key or URL that cannot be right is a ValueError, not a request."""
    with pytest.raises(ValueError, match="must be"):
        ASGGatewayClient(key, base_url=url)


def test_what_json_cannot_hold_is_refused() -> None:
    """NaN would not arrive."""
    with pytest.raises(ValueError, match="JSON compliant"):
        submit(Gateway().client(), label_spec={"question": "q", "options": [], "weight": float("nan")})


async def test_the_asynchronous_client_does_the_same() -> None:
    """Retries, results and look-ups, awaited."""
    gateway = Gateway(
        httpx.Response(503), httpx.Response(202, json=TASK), batch(1), httpx.Response(200, json=TASK), batch(1)
    )
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with AsyncASGGatewayClient("k", transport=httpx.MockTransport(gateway), sleep=sleep) as client:
        result = await client.submit_task(task_type="sentiment", data_url="https://a.example", label_spec=SPEC)
        assert result["task_id"] == "tsk_1"
        assert (await client.submit_batch([{}])).batch_id == "bat_1"
        assert (await client.get_task("tsk_1")).task_id == "tsk_1"
        assert (await client.get_batch("bat_1")).task_ids == ("tsk_1_0",)
    assert len(pauses) == 1
    assert [request.url.path for request in gateway.requests][-2:] == ["/v1/tasks/tsk_1", "/v1/tasks/batch/bat_1"]
