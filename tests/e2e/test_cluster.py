"""Two `serve` and two `work` processes on a private RabbitMQ and a private Aerospike."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from asg_gateway import AsyncASGGatewayClient

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from tests.e2e.contract import BATCH_CURL, TASK, TASK_CURL, curl
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until

TRUSTED = "guest"


class Deployment(msgspec.Struct):
    """What a test needs to know. `urls` are of the two shims."""

    urls: list[str]
    api_key: str
    cust_id: str
    env: dict[str, str]
    broker_url: str
    directory: Path
    processes: list[Ingest]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def ingest(self, *arguments: str) -> Any:
        """A command's JSON output."""
        done = run_ingest(*arguments, "--json", env=self.env, directory=self.directory)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def deployment(
    rabbitmq: RabbitServer, aerospike: AerospikeServer, rabbitmq_url: str, tmp_path: Path
) -> Iterator[Deployment]:
    """Set up by the command line, as an operator would."""
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    ports = free_ports(2)
    made = Deployment([f"http://127.0.0.1:{p}" for p in ports], "", cust_id, env, rabbitmq_url, tmp_path, [])
    done = run_ingest("topology", "apply", env=env, directory=tmp_path)
    assert done.returncode == 0, done.stderr
    made.ingest("customer", "add", cust_id, "--quota", "100000")
    made.ingest("webhook", "add", cust_id, "https://example.com/hooks/asg")
    made.api_key = made.ingest("key", "create", cust_id)["api_key"]
    made.processes = [Ingest("serve", "--port", str(port), directory=tmp_path, env=env) for port in ports]
    made.processes += [Ingest("work", directory=tmp_path, env=env) for _ in range(2)]
    for url in made.urls:
        wait_ready(url)
    yield made
    codes = [process.stop(30) for process in made.processes]
    assert codes == [0, 0, 0, 0], [process.text()[-2000:] for process in made.processes]


@pytest.fixture
async def broker(deployment: Deployment) -> AsyncIterator[RabbitBroker]:
    opened = RabbitBroker(deployment.broker_url)
    yield opened
    await opened.close()


async def drain(broker: RabbitBroker, queue: str, count: int, quiet: float = 1.0) -> list[Delivery]:
    """At least `count` messages, and what else comes within `quiet` seconds after."""
    consumer = await broker.consumer(queue, 5000)
    got: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(got) < count:
            got += await consumer.receive()
    try:
        while True:
            got += await asyncio.wait_for(consumer.receive(), quiet)
    except TimeoutError:
        pass
    await consumer.ack(got)
    await consumer.close()
    return got


def data(delivery: Delivery) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(delivery.body)
    assert event["specversion"] == "1.0"
    body: dict[str, Any] = event["data"]
    return body


async def test_the_contracts_curl_lines(deployment: Deployment, broker: RabbitBroker) -> None:
    """As in the contract, and the messages downstream are the whole tasks."""
    task = await asyncio.to_thread(curl, TASK_CURL, deployment.urls[0], deployment.api_key)
    replay = await asyncio.to_thread(curl, TASK_CURL, deployment.urls[1], deployment.api_key)
    assert replay == task | {"idempotent": True}
    batch = await asyncio.to_thread(curl, BATCH_CURL, deployment.urls[1], deployment.api_key)
    consensus = [data(each) for each in await drain(broker, topology.CONSENSUS_TASKS, 3)]
    single = next(each for each in consensus if each["task_id"] == task["task_id"])
    assert single == TASK | {
        "task_id": task["task_id"],
        "cust_id": deployment.cust_id,
        "created_at": task["created_at"],
        "consensus_threshold": 3,
    }
    items = sorted((each for each in consensus if "batch_id" in each), key=lambda each: each["batch_index"])
    assert [(each["batch_id"], each["callback_url"]) for each in items] == [
        (batch["batch_id"], "https://example.com/hooks/asg")
    ] * 2
    webhooks = await drain(broker, topology.WEBHOOK_DISPATCH, 3)
    keys = Counter(each.routing_key for each in webhooks)
    assert keys == {"task.accepted.image_classification.webhook": 2, "batch.accepted.webhook": 1}
    done = next(data(each) for each in webhooks if each.routing_key.startswith("batch"))
    assert done["task_ids"] == [each["task_id"] for each in items]


async def test_two_hundred_posts_with_one_key(deployment: Deployment, broker: RabbitBroker) -> None:
    """One 202, the rest 200; one id, one created_at, one charge, one event."""
    body = TASK | {"idempotency_key": "the-one"}
    async with httpx.AsyncClient(headers=deployment.headers, timeout=30) as client:
        answers = await asyncio.gather(
            *[client.post(f"{deployment.urls[i % 2]}/v1/tasks", json=body) for i in range(200)]
        )
    assert Counter(each.status_code for each in answers) == {202: 1, 200: 199}
    assert len({(each.json()["task_id"], each.json()["created_at"]) for each in answers}) == 1
    shown = await asyncio.to_thread(deployment.ingest, "customer", "show", deployment.cust_id)
    assert shown["used_this_month"] == 1
    events = await drain(broker, topology.CONSENSUS_TASKS, 1)
    assert {data(each)["task_id"] for each in events} == {answers[0].json()["task_id"]}
    assert len(events) == 1


async def test_a_thousand_tasks_and_their_replay(deployment: Deployment, broker: RabbitBroker) -> None:
    """1,000 distinct task.accepted and one batch.accepted; sent again: 200 and nothing more."""
    body = {"tasks": [TASK | {"callback_url": "https://example.com/hooks/asg"}] * 1000, "idempotency_key": "b"}
    headers = deployment.headers | {"Prefer": "return=representation"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        first = await client.post(f"{deployment.urls[0]}/v1/tasks/batch", json=body)
        events = await drain(broker, topology.WEBHOOK_DISPATCH, 1001)
        again = await client.post(f"{deployment.urls[1]}/v1/tasks/batch", json=body)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json() | {"idempotent": True}
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(set(first.json()["task_ids"])) == 1000
    assert [each.routing_key for each in events[:-1]] == ["task.accepted.text_classification.webhook"] * 1000
    assert [data(each)["task_id"] for each in events[:-1]] == first.json()["task_ids"]
    assert data(events[-1])["task_ids"] == first.json()["task_ids"]
    async with httpx.AsyncClient(headers=headers, base_url=deployment.urls[1]) as client:
        for event in (data(events[0]), data(events[999])):
            found = await client.get(f"/v1/tasks/{event['task_id']}")
            assert found.json() == {name: event[name] for name in ("task_id", "created_at")} | {"status": "pending"}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(drain(broker, topology.WEBHOOK_DISPATCH, 1), 2)


async def test_direct_producers_get_the_same_treatment(deployment: Deployment, broker: RabbitBroker) -> None:
    """A task and a batch on the exchange are accepted; a repeat is told as a duplicate, and charged once."""
    publisher = await broker.publisher()

    def direct(kind: str, body: object, message_id: str) -> Message:
        key = f"{kind}.submitted.{deployment.cust_id}"
        return Message(
            exchange=topology.SUBMISSIONS, routing_key=key, body=json.dumps(body).encode(), message_id=message_id
        )

    sent = [direct("task", TASK, "m1"), direct("task", TASK, "m1"), direct("batch", {"tasks": [TASK] * 2}, "m2")]
    assert set(await publisher.publish(sent)) == {PublishOutcome.CONFIRMED}
    events = [data(each) for each in await drain(broker, topology.CONSENSUS_TASKS, 3)]
    assert len({each["task_id"] for each in events}) == len(events) == 3
    async with httpx.AsyncClient(headers=deployment.headers) as client:
        over_http = await client.post(f"{deployment.urls[0]}/v1/tasks", json=TASK | {"idempotency_key": "m1"})
    assert over_http.status_code == 200
    assert over_http.json()["task_id"] in {each["task_id"] for each in events}
    shown = await asyncio.to_thread(deployment.ingest, "customer", "show", deployment.cust_id)
    assert shown["used_this_month"] == 3


async def test_what_cannot_be_accepted_is_a_dead_letter(deployment: Deployment, broker: RabbitBroker) -> None:
    """Reason code in a header, detail and the submission in the body; what is right gets through in between."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"body": b"\xff\xfe"}, "malformed"),
        ({"body": b"{"}, "malformed"),
        ({"body": b"[" * 100_000}, "malformed"),
        ({"body": b"{}"}, "invalid"),
        ({"body": b"x" * (8 * 1024 * 1024 + 1)}, "too_large"),
        ({"content_type": "text/plain"}, "unsupported_content_type"),
        ({"message_id": ""}, "missing_message_id"),
        ({"routing_key": "task.submitted.nobody"}, "unknown_customer"),
        ({"routing_key": "task.submitted.ü"}, "bad_routing_key"),
        ({"type": "ingest.admitted.v1", "body": b"junk"}, "malformed"),
    ]
    good: dict[str, Any] = {
        "exchange": topology.SUBMISSIONS,
        "routing_key": f"task.submitted.{deployment.cust_id}",
        "body": json.dumps(TASK).encode(),
    }
    sent = [Message(**(good | {"message_id": f"m{i}"} | changes)) for i, (changes, _) in enumerate(cases)]
    sent.insert(3, Message(**good, message_id="good-1"))
    sent.append(Message(**good, message_id="good-2"))
    publisher = await broker.publisher()
    assert set(await publisher.publish(sent)) == {PublishOutcome.CONFIRMED}
    dead = await drain(broker, topology.INGEST_DEAD, len(cases))
    assert Counter(each.headers["x-ingest-reason"] for each in dead) == Counter(reason for _, reason in cases)
    for each in dead:
        detail = json.loads(each.body)
        assert detail["reason"] == each.headers["x-ingest-reason"]
        assert detail["error"]
        assert detail["submission"]["routing_key"] in {message.routing_key for message in sent}
    assert len(await drain(broker, topology.CONSENSUS_TASKS, 2)) == 2


async def test_a_task_is_accepted_after_the_servers_were_away(
    deployment: Deployment, broker: RabbitBroker, aerospike: AerospikeServer
) -> None:
    """Aerospike stalls: 503 with Retry-After over HTTP, nothing lost or dead-lettered over AMQP."""
    if not aerospike.controllable:
        pytest.skip("the Aerospike server given cannot be paused")
    publisher = await broker.publisher()
    key = f"task.submitted.{deployment.cust_id}"
    direct = Message(
        exchange=topology.SUBMISSIONS, routing_key=key, body=json.dumps(TASK).encode(), message_id="while-away"
    )
    aerospike.pause()
    try:
        assert await publisher.publish([direct]) == [PublishOutcome.CONFIRMED]
        async with httpx.AsyncClient(headers=deployment.headers, timeout=30) as client:
            answer = await client.post(f"{deployment.urls[0]}/v1/tasks", json=TASK)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert "error" in answer.json()
    finally:
        aerospike.resume()
    (event,) = await drain(broker, topology.CONSENSUS_TASKS, 1)
    assert data(event)["cust_id"] == deployment.cust_id


def test_the_topology_commands_agree(rabbitmq: RabbitServer, rabbitmq_url: str, tmp_path: Path) -> None:
    """`check` finds what is missing, `apply` mends it."""
    management = rabbitmq.management_url.replace("//", "//guest:guest@")
    env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_MANAGEMENT_URL": management}
    before = run_ingest("topology", "check", env=env, directory=tmp_path)
    assert before.returncode == 1
    assert "queue ingest.tasks is missing" in before.stdout
    assert run_ingest("topology", "apply", env=env, directory=tmp_path).returncode == 0

    # The management API's statistics are some seconds late.
    wait_until(lambda: run_ingest("topology", "check", env=env, directory=tmp_path).returncode == 0, "check", 30)


async def test_the_sdk_against_both_shims(deployment: Deployment, broker: RabbitBroker) -> None:
    """Submit, replay through the other shim, look up; a batch of 1,500 is two."""
    one = AsyncASGGatewayClient(deployment.api_key, base_url=deployment.urls[0])
    two = AsyncASGGatewayClient(deployment.api_key, base_url=deployment.urls[1])
    async with one, two:
        first = await one.submit_task(
            task_type="sentiment",
            data_url="https://a.example",
            label_spec=TASK["label_spec"],
            idempotency_key="s",
        )
        other = await two.submit_task(
            task_type="sentiment",
            data_url="https://b.example",
            label_spec=TASK["label_spec"],
            idempotency_key="s",
        )
        assert (other.task_id, other.idempotent, other.payload_mismatch) == (first.task_id, True, True)
        assert await two.get_task(first.task_id) == first
        batch = await one.submit_batch([TASK] * 1500)
        assert len(batch.batch_ids) == 2
        assert len(set(batch.task_ids)) == 1500
        assert (await two.get_batch(batch.batch_ids[0])).task_ids == batch.task_ids[:1000]
    assert len(await drain(broker, topology.CONSENSUS_TASKS, 1501)) == 1501
