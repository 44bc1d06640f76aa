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
from ingest.domain.dead_letters import ENVELOPE_HEADER
from ingest.domain.messages import Delivery, Message, PublishOutcome
from tests.e2e.contract import BATCH_CURL, TASK, TASK_CURL, curl
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until


class Deployment(msgspec.Struct):
    """The processes and what a test needs to reach them. `urls` are those of the two shims."""

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
        """Run a command that must succeed; return its decoded JSON output."""
        done = run_ingest(*arguments, "--json", env=self.env, directory=self.directory)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def deployment(
    rabbitmq: RabbitServer, aerospike: AerospikeServer, rabbitmq_url: str, tmp_path: Path
) -> Iterator[Deployment]:
    """Start a deployment that is set up with the command line, as operators do it."""
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    ports = free_ports(2)
    started = Deployment([f"http://127.0.0.1:{port}" for port in ports], "", cust_id, env, rabbitmq_url, tmp_path, [])
    done = run_ingest("topology", "apply", env=env, directory=tmp_path)
    assert done.returncode == 0, done.stderr
    started.ingest("customer", "add", cust_id, "--quota", "100000")
    started.ingest("webhook", "add", cust_id, "https://example.com/hooks/asg")
    started.api_key = started.ingest("key", "create", cust_id)["api_key"]
    started.processes = [Ingest("serve", "--port", str(port), directory=tmp_path, env=env) for port in ports]
    started.processes += [Ingest("work", directory=tmp_path, env=env) for _ in range(2)]
    for url in started.urls:
        wait_ready(url)
    yield started
    codes = [process.stop(30) for process in started.processes]
    assert codes == [0, 0, 0, 0], [process.text()[-2000:] for process in started.processes]


@pytest.fixture
async def broker(deployment: Deployment) -> AsyncIterator[RabbitBroker]:
    broker = RabbitBroker(deployment.broker_url)
    yield broker
    await broker.close()


async def drain(broker: RabbitBroker, queue: str, count: int, quiet: float = 1.0) -> list[Delivery]:
    """Receive and ack `count` messages or more, until none arrives for `quiet` seconds."""
    consumer = await broker.consumer(queue, 5000)
    deliveries: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(deliveries) < count:
            deliveries += await consumer.receive()
    try:
        while True:
            deliveries += await asyncio.wait_for(consumer.receive(), quiet)
    except TimeoutError:
        pass
    await consumer.ack(deliveries)
    await consumer.close()
    return deliveries


def event_data(delivery: Delivery) -> dict[str, Any]:
    """Return the data of a CloudEvent."""
    event: dict[str, Any] = json.loads(delivery.body)
    assert event["specversion"] == "1.0"
    data: dict[str, Any] = event["data"]
    return data


async def test_curl_lines_of_the_contract_produce_complete_events(deployment: Deployment, broker: RabbitBroker) -> None:
    """The events contain the whole tasks; a replay through the other shim gets the same answer."""
    task = await asyncio.to_thread(curl, TASK_CURL, deployment.urls[0], deployment.api_key)
    replay = await asyncio.to_thread(curl, TASK_CURL, deployment.urls[1], deployment.api_key)
    assert replay == task | {"idempotent": True}
    batch = await asyncio.to_thread(curl, BATCH_CURL, deployment.urls[1], deployment.api_key)
    accepted = [event_data(delivery) for delivery in await drain(broker, topology.CONSENSUS_TASKS, 3)]
    single = next(event for event in accepted if event["task_id"] == task["task_id"])
    assert single == TASK | {
        "task_id": task["task_id"],
        "cust_id": deployment.cust_id,
        "created_at": task["created_at"],
        "idempotency_key": "order-10042-line-3",
        "consensus_threshold": 3,
    }
    items = sorted((event for event in accepted if "batch_id" in event), key=lambda event: event["batch_index"])
    assert [(item["batch_id"], item["callback_url"]) for item in items] == [
        (batch["batch_id"], "https://example.com/hooks/asg")
    ] * 2
    webhooks = await drain(broker, topology.WEBHOOK_DISPATCH, 3)
    keys = Counter(delivery.routing_key for delivery in webhooks)
    assert keys == {"task.accepted.image_classification.webhook": 2, "batch.accepted.webhook": 1}
    batch_event = next(event_data(delivery) for delivery in webhooks if delivery.routing_key.startswith("batch"))
    assert batch_event["task_ids"] == [item["task_id"] for item in items]


async def test_concurrent_posts_with_one_key_are_accepted_and_charged_once(
    deployment: Deployment, broker: RabbitBroker
) -> None:
    """One of 200 POSTs is answered 202, the others 200 with the same id and created_at; there is one event."""
    body = TASK | {"idempotency_key": "the-one"}
    async with httpx.AsyncClient(headers=deployment.headers, timeout=30) as client:
        answers = await asyncio.gather(
            *[client.post(f"{deployment.urls[i % 2]}/v1/tasks", json=body) for i in range(200)]
        )
    assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 199}
    assert len({(answer.json()["task_id"], answer.json()["created_at"]) for answer in answers}) == 1
    shown = await asyncio.to_thread(deployment.ingest, "customer", "show", deployment.cust_id)
    assert shown["used_this_month"] == 1
    deliveries = await drain(broker, topology.CONSENSUS_TASKS, 1)
    assert {event_data(delivery)["task_id"] for delivery in deliveries} == {answers[0].json()["task_id"]}
    assert len(deliveries) == 1


async def test_batch_of_1000_tasks_emits_events_once_and_its_replay_emits_none(
    deployment: Deployment, broker: RabbitBroker
) -> None:
    body = {"tasks": [TASK | {"callback_url": "https://example.com/hooks/asg"}] * 1000, "idempotency_key": "b"}
    headers = deployment.headers | {"Prefer": "return=representation"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        first = await client.post(f"{deployment.urls[0]}/v1/tasks/batch", json=body)
        deliveries = await drain(broker, topology.WEBHOOK_DISPATCH, 1001)
        replay = await client.post(f"{deployment.urls[1]}/v1/tasks/batch", json=body)
    assert (first.status_code, replay.status_code) == (202, 200)
    assert (first.json()["replayed"], replay.json()["replayed"]) == (0, 1000)
    assert replay.json() == first.json() | {"replayed": 1000, "idempotent": True}
    assert replay.headers["Idempotent-Replayed"] == "true"
    assert len(set(first.json()["task_ids"])) == 1000
    *tasks, batch = deliveries
    assert [delivery.routing_key for delivery in tasks] == ["task.accepted.text_classification.webhook"] * 1000
    assert [event_data(delivery)["task_id"] for delivery in tasks] == first.json()["task_ids"]
    assert event_data(batch)["task_ids"] == first.json()["task_ids"]
    async with httpx.AsyncClient(headers=headers, base_url=deployment.urls[1]) as client:
        for event in (event_data(tasks[0]), event_data(tasks[999])):
            answer = await client.get(f"/v1/tasks/{event['task_id']}")
            assert answer.json() == {name: event[name] for name in ("task_id", "created_at")} | {"status": "pending"}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(drain(broker, topology.WEBHOOK_DISPATCH, 1), 2)


async def test_submissions_of_a_direct_producer_are_accepted_and_charged_once(
    deployment: Deployment, broker: RabbitBroker
) -> None:
    """A duplicate over AMQP adds no event and no charge; the same key over HTTP is a replay."""
    publisher = await broker.publisher()

    def direct(kind: str, body: object, message_id: str) -> Message:
        key = f"{kind}.submitted.{deployment.cust_id}"
        return Message(
            exchange=topology.SUBMISSIONS, routing_key=key, body=json.dumps(body).encode(), message_id=message_id
        )

    sent = [direct("task", TASK, "m1"), direct("task", TASK, "m1"), direct("batch", {"tasks": [TASK] * 2}, "m2")]
    assert set(await publisher.publish(sent)) == {PublishOutcome.CONFIRMED}
    events = [event_data(delivery) for delivery in await drain(broker, topology.CONSENSUS_TASKS, 3)]
    assert len({event["task_id"] for event in events}) == len(events) == 3
    async with httpx.AsyncClient(headers=deployment.headers) as client:
        over_http = await client.post(f"{deployment.urls[0]}/v1/tasks", json=TASK | {"idempotency_key": "m1"})
    assert over_http.status_code == 200
    assert over_http.json()["task_id"] in {event["task_id"] for event in events}
    shown = await asyncio.to_thread(deployment.ingest, "customer", "show", deployment.cust_id)
    assert shown["used_this_month"] == 3


async def test_rejected_submissions_become_dead_letters_and_valid_ones_are_accepted(
    deployment: Deployment, broker: RabbitBroker
) -> None:
    """A dead letter has its reason code in a header, and the error and the submission in its body.

    Those of a submission above 256 KiB are in a header.
    """
    cases: list[tuple[dict[str, Any], str]] = [
        ({"body": b"\xff\xfe"}, "malformed"),
        ({"body": b"{"}, "malformed"),
        ({"body": b"[" * 100_000}, "malformed"),
        ({"body": b"{}"}, "invalid"),
        ({"body": b"x" * (8 * 1024 * 1024 + 1)}, "too_large"),
        ({"content_type": "text/plain"}, "unsupported_content_type"),
        ({"message_id": ""}, "missing_message_id"),
        ({"routing_key": "task.submitted.unregistered"}, "unknown_customer"),
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
    reasons = Counter(delivery.headers["x-ingest-reason"] for delivery in dead)
    assert reasons == Counter(reason for _, reason in cases)
    for delivery in dead:
        body = json.loads(delivery.headers.get(ENVELOPE_HEADER, delivery.body))
        assert body["reason"] == delivery.headers["x-ingest-reason"]
        assert body["error"]
        assert body["submission"]["routing_key"] in {message.routing_key for message in sent}
    assert len(await drain(broker, topology.CONSENSUS_TASKS, 2)) == 2


async def test_store_outage_is_answered_503_and_delays_direct_submissions(
    deployment: Deployment, broker: RabbitBroker, aerospike: AerospikeServer
) -> None:
    """While Aerospike is paused, a direct submission waits. It is accepted afterwards and not dead-lettered."""
    if not aerospike.controllable:
        pytest.skip("the Aerospike server given cannot be paused")
    publisher = await broker.publisher()
    key = f"task.submitted.{deployment.cust_id}"
    direct = Message(
        exchange=topology.SUBMISSIONS, routing_key=key, body=json.dumps(TASK).encode(), message_id="during-outage"
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
    (delivery,) = await drain(broker, topology.CONSENSUS_TASKS, 1)
    assert event_data(delivery)["cust_id"] == deployment.cust_id
    assert await asyncio.to_thread(deployment.ingest, "dlq", "list") == []


def test_topology_check_reports_missing_queues_until_apply_creates_them(
    rabbitmq: RabbitServer, rabbitmq_url: str, tmp_path: Path
) -> None:
    management = rabbitmq.management_url.replace("//", "//guest:guest@")
    env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_MANAGEMENT_URL": management}
    before = run_ingest("topology", "check", env=env, directory=tmp_path)
    assert before.returncode == 1
    assert "queue ingest.tasks is missing" in before.stdout
    assert run_ingest("topology", "apply", env=env, directory=tmp_path).returncode == 0

    # The statistics of the management API lag by some seconds.
    wait_until(lambda: run_ingest("topology", "check", env=env, directory=tmp_path).returncode == 0, "check", 30)


async def test_sdk_submits_replays_and_looks_up_through_both_shims(
    deployment: Deployment, broker: RabbitBroker
) -> None:
    """The SDK splits 1,500 tasks into two batches."""
    client = AsyncASGGatewayClient(deployment.api_key, base_url=deployment.urls[0])
    other_client = AsyncASGGatewayClient(deployment.api_key, base_url=deployment.urls[1])
    async with client, other_client:
        first = await client.submit_task(
            task_type="sentiment",
            data_url="https://a.example",
            label_spec=TASK["label_spec"],
            idempotency_key="s",
        )
        mismatch = await other_client.submit_task(
            task_type="sentiment",
            data_url="https://b.example",
            label_spec=TASK["label_spec"],
            idempotency_key="s",
        )
        assert (mismatch.task_id, mismatch.idempotent, mismatch.payload_mismatch) == (first.task_id, True, True)
        assert await other_client.get_task(first.task_id) == first
        batch = await client.submit_batch([TASK] * 1500)
        assert len(batch.batch_ids) == 2
        assert len(set(batch.task_ids)) == 1500
        assert (await other_client.get_batch(batch.batch_ids[0])).task_ids == batch.task_ids[:1000]
    assert len(await drain(broker, topology.CONSENSUS_TASKS, 1501)) == 1501
