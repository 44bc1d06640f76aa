"""Requests that the SDK sends for tasks and batches, and the results that it returns."""

import copy
import json
import pickle
from datetime import UTC, datetime
from typing import Any

import asg_gateway
import httpx
import pytest
from asg_gateway import _tasks
from asg_gateway._protocol import batch_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sdk.gateway import SPEC, TASK, Gateway, batch, submit

EXPIRES = {"Idempotency-Key-Expires": "Thu, 16 Apr 2026 12:00:00 GMT"}


def test_result_is_a_mapping_with_the_keys_of_the_contract_and_read_only_attributes() -> None:
    """Facts that are not in the body are attributes only."""
    gateway = Gateway(httpx.Response(202, json=TASK, headers={"X-Request-Id": "r1"} | EXPIRES))
    result = submit(gateway.client())
    assert dict(result) == TASK
    assert result["task_id"] == result.task_id == "tsk_1"
    assert (result.idempotent, result.payload_mismatch, result.request_id) == (False, False, "r1")
    assert result.expires_at == datetime(2026, 4, 16, 12, tzinfo=UTC)
    assert repr(result) == "TaskResult(task_id='tsk_1', status='pending', created_at='2026-04-09T12:00:00Z')"
    with pytest.raises(AttributeError):
        result.task_id = "x"  # type: ignore[misc]


def test_results_can_be_encoded_copied_and_pickled_like_dicts_but_not_changed() -> None:
    """A web handler returns them, and a process pool passes them on."""
    task = submit(Gateway(httpx.Response(200, json=TASK | {"idempotent": True}, headers=EXPIRES)).client())
    whole = Gateway(batch(1000), batch(1, 2)).client().submit_batch([{}] * 1001)
    assert json.loads(json.dumps([task, whole])) == [dict(task), dict(whole)]
    for result in (task, whole):
        for twin in (pickle.loads(pickle.dumps(result)), copy.copy(result), copy.deepcopy(result)):
            assert (type(twin), dict(twin), vars(twin)) == (type(result), dict(result), vars(result))
        with pytest.raises(TypeError, match=r"cannot be changed; dict\(result\) is a copy"):
            result["status"] = "changed"
        with pytest.raises(TypeError, match="cannot be changed"):
            result.update(status="changed")
    assert hash(task) == hash(copy.copy(task))


def test_replay_is_idempotent_and_reports_a_payload_mismatch() -> None:
    body = TASK | {"idempotent": True}
    result = submit(Gateway(httpx.Response(200, json=body, headers={"Idempotency-Payload-Mismatch": "true"})).client())
    assert dict(result) == body
    assert (result.idempotent, result.payload_mismatch, result.expires_at) == (True, True, None)


def test_request_has_api_key_user_agent_and_only_the_given_fields() -> None:
    gateway = Gateway(httpx.Response(202, json=TASK))
    submit(gateway.client(base_url="https://gateway.example/"), idempotency_key="k")
    (request,) = gateway.requests
    assert str(request.url) == "https://gateway.example/v1/tasks"
    assert request.headers["Authorization"] == "Bearer secret-key"
    assert request.headers["User-Agent"].startswith(f"asg-gateway-python/{asg_gateway.__version__} httpx/")
    body = {"type": "sentiment", "data_url": "https://a.example/x", "label_spec": SPEC, "idempotency_key": "k"}
    assert gateway.bodies == [body]


def test_batch_that_fits_is_one_request_with_the_given_key() -> None:
    gateway = Gateway(batch(2))
    result = gateway.client().submit_batch([{}, {}], idempotency_key="k")
    assert gateway.bodies == [{"tasks": [{}, {}], "idempotency_key": "k"}]
    assert gateway.requests[0].headers["Prefer"] == "return=representation"
    assert dict(result) == {"batch_id": "bat_1", "task_count": 2, "status": "accepted"}
    assert (result.task_ids, result.batch_ids, result.parts) == (("tsk_1_0", "tsk_1_1"), ("bat_1",), ())


def test_batch_lookup_returns_creation_time_and_task_ids() -> None:
    """A client that has crashed needs both."""
    body = {"batch_id": "bat_1", "task_count": 1, "status": "accepted", "created_at": "2026-04-09T12:00:00Z"}
    result = Gateway(httpx.Response(200, json=body | {"task_ids": ["tsk_1"]})).client().get_batch("bat_1")
    assert (result.created_at, result.task_ids) == ("2026-04-09T12:00:00Z", ("tsk_1",))


def test_lookup_of_a_split_batch_by_its_id_returns_all_parts() -> None:
    """The id can be stored: the client that looks it up need not be the one that submitted."""
    submitted = Gateway(batch(1000), batch(500, 2)).client().submit_batch([{}] * 1500)
    assert submitted["batch_id"] == "bat_1,bat_2"
    gateway = Gateway(batch(1000), batch(500, 2))
    result = gateway.client().get_batch(submitted["batch_id"])
    assert [request.url.path for request in gateway.requests] == ["/v1/tasks/batch/bat_1", "/v1/tasks/batch/bat_2"]
    assert (result.task_count, result.task_ids, result.batch_id) == (1500, submitted.task_ids, "bat_1,bat_2")


@pytest.mark.parametrize(
    ("bodies", "replayed"),
    [
        ([{"replayed": 3}], 3),
        ([{"replayed": 0}], 0),
        ([{"idempotent": True}], 1000),
        ([{}], None),
        ([{"replayed": 3}, {"replayed": 4}], 7),
        ([{"replayed": 3}, {}], None),
    ],
)
def test_batch_result_counts_replays_if_the_gateway_does(bodies: list[dict[str, Any]], replayed: int | None) -> None:
    common = {"batch_id": "bat_1", "task_count": 1000, "status": "accepted", "task_ids": []}
    gateway = Gateway(*[httpx.Response(202, json=common | body) for body in bodies])
    assert gateway.client().submit_batch([{}] * 1000 * len(bodies)).replayed == replayed


def test_error_of_a_part_names_indexes_of_the_whole_list() -> None:
    """Text of the client in a sentence is not changed."""
    fields = [
        {"field": "tasks[3].type", "error": "tasks[3].type must be one of a, b"},
        {"field": "tasks[7].tasks[7]", "error": "tasks[7].tasks[7] is not a known field"},
        {"field": "callback_url", "error": "callback_url must be a string"},
    ]
    refusal = httpx.Response(400, json={"error": fields[0]["error"], "errors": fields})
    gateway = Gateway(batch(1000), refusal, refusal)
    with pytest.raises(asg_gateway.PartialBatchError, match=r"400: tasks\[1003\].type must be one of") as caught:
        gateway.client().submit_batch([{}] * 1500)
    error = caught.value.__cause__
    assert isinstance(error, asg_gateway.InvalidRequestError)
    assert error.errors == (
        ("tasks[1003].type", "tasks[1003].type must be one of a, b"),
        ("tasks[1007].tasks[7]", "tasks[1007].tasks[7] is not a known field"),
        ("callback_url", "callback_url must be a string"),
    )
    with pytest.raises(asg_gateway.InvalidRequestError, match=r"400: tasks\[3\].type"):
        gateway.client().submit_batch([{}])


@pytest.mark.parametrize(
    ("task", "error"), [({"a": float("nan")}, ValueError), ({"a": {1}}, TypeError), ({"a": "\ud800"}, ValueError)]
)
def test_error_of_a_task_that_cannot_be_encoded_names_its_index(task: dict[str, Any], error: type[Exception]) -> None:
    gateway = Gateway()
    with pytest.raises(error, match=r"^tasks\[1200\]: ") as caught:
        gateway.client().submit_batch([{}] * 1200 + [task])
    assert type(caught.value) is error
    assert gateway.requests == []


def test_large_batch_is_split_into_parts_of_1000_with_derived_keys() -> None:
    """The result joins the parts in order. It expires when the first part does."""
    early, late = "Thu, 16 Apr 2026 12:00:00 GMT", "Thu, 16 Apr 2026 12:00:05 GMT"
    gateway = Gateway(
        batch(1000, 1, Idempotency_Key_Expires=late), batch(1000, 2, Idempotency_Key_Expires=early), batch(1, 3)
    )
    tasks = [{"n": i} for i in range(2001)]
    result = gateway.client().submit_batch(tasks, callback_url="https://a.example/h", idempotency_key="k")
    assert [body["idempotency_key"] for body in gateway.bodies] == ["k/0", "k/1", "k/2"]
    assert [task["n"] for body in gateway.bodies for task in body["tasks"]] == list(range(2001))
    assert (result.task_count, result.batch_ids) == (2001, ("bat_1", "bat_2", "bat_3"))
    assert result.task_ids[1000] == "tsk_2_0"
    assert result.expires_at == datetime(2026, 4, 16, 12, tzinfo=UTC)
    assert {body["callback_url"] for body in gateway.bodies} == {"https://a.example/h"}


def test_split_batch_that_fails_half_way_can_be_resumed_with_the_key_in_its_error() -> None:
    """The error has the accepted parts and the cause. The repeated call sends the same requests."""
    gateway = Gateway(batch(1000), httpx.Response(403, json={"error": "quota exhausted"}), batch(1000), batch(500, 2))
    client = gateway.client()
    with pytest.raises(asg_gateway.PartialBatchError, match=r"1000 tasks.*403: quota exhausted") as caught:
        client.submit_batch([{}] * 1500)
    assert [part.task_count for part in caught.value.accepted] == [1000]
    assert isinstance(caught.value.__cause__, asg_gateway.QuotaExhaustedError)
    resumed = client.submit_batch([{}] * 1500, idempotency_key=caught.value.idempotency_key)
    assert resumed.task_count == 1500
    assert gateway.bodies[2:] == gateway.bodies[:2]


def test_error_of_first_part_has_the_key_of_the_whole_batch() -> None:
    """The caller repeats the whole call, not the part."""
    gateway = Gateway(httpx.Response(401, json={"error": "unknown key"}))
    with pytest.raises(asg_gateway.AuthenticationError) as caught:
        gateway.client().submit_batch([{}] * 1500)
    assert gateway.bodies[0]["idempotency_key"] == f"{caught.value.idempotency_key}/0"


def test_nothing_is_sent_if_one_task_exceeds_the_request_size() -> None:
    """Otherwise the parts before it would be accepted, and the rest could never be."""
    gateway = Gateway()
    with pytest.raises(ValueError, match=r"tasks\[1\] is too large"):
        gateway.client().submit_batch([{}, {"pad": "x" * _tasks.MAX_BYTES}])
    assert gateway.requests == []


@given(
    st.lists(st.integers(0, 3_000_000), max_size=20) | st.integers(0, 3_001).map(lambda count: [0] * count),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=255),
)
@settings(max_examples=40)
def test_split_batch_keeps_order_limits_and_stable_keys(sizes: list[int], key: str) -> None:
    """Property: the parts together are the whole, none is too large, and keys are distinct, stable and short."""
    tasks = [{"n": i, "pad": "x" * size} for i, size in enumerate(sizes)]
    calls = batch_calls(tasks, "https://a.example/" + "h" * 2_000, key)
    assert calls == batch_calls(tasks, "https://a.example/" + "h" * 2_000, key)
    bodies = [json.loads(call.content or b"") for call in calls]
    assert [task for body in bodies for task in body["tasks"]] == tasks
    assert all(len(call.content or b"") <= _tasks.MAX_BYTES for call in calls)
    assert all(len(body["tasks"]) <= _tasks.MAX_TASKS for body in bodies)
    assert all(body["tasks"] for body in bodies) or not tasks
    keys = [body["idempotency_key"] for body in bodies]
    assert len(set(keys)) == len(keys)
    assert max(map(len, keys)) <= 255
    assert (keys == [key]) == (len(calls) == 1)
