"""Two customers of one service try to reach each other's data: over HTTP by API key, over AMQP as broker users."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aio_pika
import httpx
import pytest
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from ingest.domain.identity import SubmissionKind, fresh_id, item_id, keyed_id
from ingest.shim.auth import FRESH
from tests.e2e.contract import TASK
from tests.fuzz.watch import Watch
from tests.fuzz.world import CUSTOMER, OTHER, World
from tests.servers import AerospikeServer, RabbitServer

HOOK = "https://hooks.acme.example/asg"
QUOTA = "1000000"
"""More than other tests on the same Aerospike use."""
UNREGISTERED_HOOK = "https://hooks.unregistered.example/asg"
FULL_ANSWER = {"Prefer": "return=representation"}


@pytest.fixture(scope="module")
def world(rabbitmq: RabbitServer, aerospike: AerospikeServer) -> Iterator[World]:
    """Start a world in which only `acme` has a webhook, and `other` is strict: its own mismatches are answered 422."""
    with World(rabbitmq, aerospike) as world:
        world.ingest("webhook", "add", CUSTOMER, HOOK)
        world.ingest("customer", "set", CUSTOMER, "--quota", QUOTA)
        world.ingest("customer", "set", OTHER, "--quota", QUOTA, "--strict")
        yield world
        assert world.defects() == []


def _client(world: World, customer: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {world.keys[customer]}"}
    return httpx.Client(base_url=world.url, headers=headers, timeout=20)


@pytest.fixture
def acme(world: World) -> Iterator[httpx.Client]:
    with _client(world, CUSTOMER) as client:
        yield client


@pytest.fixture
def other(world: World) -> Iterator[httpx.Client]:
    with _client(world, OTHER) as client:
        yield client


def _assert_new(answer: httpx.Response) -> None:
    """Assert that the answer shows no earlier use of the key."""
    assert answer.status_code == 202, answer.text
    assert "idempotent" not in answer.json()
    assert not {"idempotent-replayed", "idempotency-payload-mismatch"} & set(answer.headers)


def test_same_key_of_two_customers_gives_two_tasks(acme: httpx.Client, other: httpx.Client) -> None:
    """Replays and mismatches refer only to the customer's own task."""
    body = TASK | {"idempotency_key": "shared"}
    first, second = acme.post("/v1/tasks", json=body), other.post("/v1/tasks", json=body | {"type": "moderation"})
    _assert_new(first)
    _assert_new(second)
    assert first.json()["task_id"] != second.json()["task_id"]
    for client, own, kind in ((acme, first, body["type"]), (other, second, "moderation")):
        replay = client.post("/v1/tasks", json=body | {"type": kind})
        assert (replay.status_code, replay.json()["task_id"]) == (200, own.json()["task_id"])
        assert "Idempotency-Payload-Mismatch" not in replay.headers
    mismatch = acme.post("/v1/tasks", json=body | {"type": "sentiment"})
    assert mismatch.headers["Idempotency-Payload-Mismatch"] == "true"
    assert other.post("/v1/tasks", json=body | {"type": "sentiment"}).status_code == 422


def test_same_batch_and_item_keys_of_two_customers_give_different_ids(acme: httpx.Client, other: httpx.Client) -> None:
    """Within one customer, an item with the key of a task has the id of that task."""
    single = acme.post("/v1/tasks", json=TASK | {"idempotency_key": "item-0"}).json()["task_id"]
    body = {
        "idempotency_key": "batch",
        "tasks": [TASK | {"idempotency_key": "item-0"}, TASK | {"idempotency_key": "item-1"}, TASK],
    }
    first = acme.post("/v1/tasks/batch", json=body, headers=FULL_ANSWER)
    second = other.post("/v1/tasks/batch", json=body | {"tasks": body["tasks"][::-1]}, headers=FULL_ANSWER)
    _assert_new(first)
    _assert_new(second)
    assert first.json()["task_ids"][0] == single
    assert first.json()["batch_id"] != second.json()["batch_id"]
    assert not {single, *first.json()["task_ids"]} & set(second.json()["task_ids"])


def test_lookup_of_another_customers_id_is_answered_like_an_unknown_id(acme: httpx.Client, other: httpx.Client) -> None:
    """Status, body and names of headers are equal for tasks, batches and items of batches."""
    task = acme.post("/v1/tasks", json=TASK).json()["task_id"]
    batch = acme.post("/v1/tasks/batch", json={"tasks": [TASK, TASK | {"idempotency_key": "g"}]}, headers=FULL_ANSWER)
    batch_id, items = batch.json()["batch_id"], batch.json()["task_ids"]
    unknown = fresh_id(SubmissionKind.BATCH)
    paths = [
        (f"/v1/tasks/{task}", f"/v1/tasks/{fresh_id(SubmissionKind.TASK)}"),
        (f"/v1/tasks/batch/{batch_id}", f"/v1/tasks/batch/{unknown}"),
        *[(f"/v1/tasks/{item}", f"/v1/tasks/{item_id(unknown, 0)}") for item in items],
    ]
    for path, unknown_path in paths:
        assert acme.get(path).status_code == 200
        answer, reference = other.get(path), other.get(unknown_path)
        assert (answer.status_code, reference.status_code) == (404, 404)
        assert answer.content == reference.content
        assert set(answer.headers) == set(reference.headers)


@pytest.mark.parametrize("place", ["task", "batch", "item"])
def test_webhook_of_another_customer_is_rejected_like_an_unregistered_one(
    acme: httpx.Client, other: httpx.Client, place: str
) -> None:

    def post(client: httpx.Client, url: str) -> httpx.Response:
        if place == "task":
            return client.post("/v1/tasks", json=TASK | {"callback_url": url})
        tasks = [TASK, TASK | {"callback_url": url}] if place == "item" else [TASK]
        return client.post(
            "/v1/tasks/batch", json={"tasks": tasks} | ({"callback_url": url} if place == "batch" else {})
        )

    assert post(acme, HOOK).status_code == 202
    answer = post(other, HOOK)
    assert (answer.status_code, answer.content) == (400, post(other, UNREGISTERED_HOOK).content)


def test_cust_id_in_a_body_is_rejected_as_an_unknown_field(other: httpx.Client) -> None:
    forged = TASK | {"cust_id": CUSTOMER}
    for path, body in (
        ("/v1/tasks", forged),
        ("/v1/tasks/batch", {"tasks": [TASK], "cust_id": CUSTOMER}),
        ("/v1/tasks/batch", {"tasks": [forged]}),
    ):
        answer = other.post(path, json=body, headers={"X-Cust-Id": CUSTOMER})
        assert answer.status_code == 400
        assert answer.json()["error"].endswith("cust_id is not a known field")


def test_exhausted_quota_of_one_customer_does_not_affect_another(
    world: World, acme: httpx.Client, other: httpx.Client
) -> None:
    """`other` gets 403 even for a key that `acme` has used, and `acme` is charged for its own tasks only."""
    used = {name: world.ingest("customer", "show", name)["used_this_month"] for name in (CUSTOMER, OTHER)}
    world.ingest("customer", "set", OTHER, "--quota", str(used[OTHER] + 2))
    body = TASK | {"idempotency_key": "charged to acme"}
    time.sleep(FRESH + 0.5)  # until the quota in the cache of the shim expires
    try:
        _assert_new(acme.post("/v1/tasks", json=body))
        assert [other.post("/v1/tasks", json=TASK).status_code for _ in range(2)] == [202, 202]
        for answer in (other.post("/v1/tasks", json=body), other.post("/v1/tasks/batch", json={"tasks": [body, TASK]})):
            assert (answer.status_code, answer.json()) == (403, {"error": "quota exhausted"})
        _assert_new(acme.post("/v1/tasks", json=TASK))
        for name in (CUSTOMER, OTHER):
            assert world.ingest("customer", "show", name)["used_this_month"] == used[name] + 2
    finally:
        world.ingest("customer", "set", OTHER, "--quota", QUOTA)


class Producer:
    """The connection of one customer's broker user. Every message gets a new channel, as the broker may close it."""

    def __init__(self, name: str, connection: aio_pika.abc.AbstractConnection) -> None:
        self.name = name
        self.connection = connection

    async def publish(self, body: Any, to: str = "", kind: str = "task", **properties: Any) -> None:
        message = aio_pika.Message(
            json.dumps(body).encode(),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            **{"message_id": "m", **properties},
        )
        async with self.connection.channel() as channel:
            exchange = await channel.get_exchange("asg.submissions", ensure=False)
            await exchange.publish(message, f"{kind}.submitted.{to or self.name}", timeout=10)


@pytest.fixture
async def producers(world: World) -> AsyncIterator[dict[str, Producer]]:
    producers = {name: Producer(name, await aio_pika.connect(url)) for name, url in world.producer_urls.items()}
    yield producers
    for producer in producers.values():
        await producer.connection.close()


@pytest.fixture
async def watch(world: World) -> AsyncIterator[Watch]:
    """Count the events and dead letters of this test only."""
    watch = Watch(world.admin_url)
    await watch.start()
    await asyncio.sleep(1)  # until the messages of earlier tests have arrived
    for counter in (watch.tasks, watch.outcomes, watch.dead):
        counter.clear()
    yield watch
    await watch.close()


async def test_same_message_id_of_two_customers_gives_two_tasks_that_http_finds_by_key(
    acme: httpx.Client, other: httpx.Client, producers: dict[str, Producer], watch: Watch
) -> None:
    """Over HTTP, each customer gets only its own task: with the same key as a replay, and with GET by id."""
    for producer in producers.values():
        await producer.publish(TASK, message_id="both ways")
    await watch.until(2, 10)
    ids = [keyed_id(SubmissionKind.TASK, name, "both ways") for name in (CUSTOMER, OTHER)]
    assert dict(watch.tasks) == {ids[0]: 1, ids[1]: 1}
    for client, own, foreign in ((acme, ids[0], ids[1]), (other, ids[1], ids[0])):
        replay = client.post("/v1/tasks", json=TASK, headers={"Idempotency-Key": "both ways"})
        assert (replay.status_code, replay.json()["task_id"]) == (200, own)
        assert client.get(f"/v1/tasks/{own}").status_code == 200
        assert client.get(f"/v1/tasks/{foreign}").status_code == 404


async def test_broker_refuses_to_publish_for_another_customer(producers: dict[str, Producer], watch: Watch) -> None:
    """It refuses the routing key and the user_id of another user, and closes only the channel."""
    attacker = producers[CUSTOMER]
    for kind in ("task", "batch"):
        with pytest.raises(ChannelAccessRefused):
            await attacker.publish(TASK, to=OTHER, kind=kind)
    for user in (OTHER, "ingest"):
        with pytest.raises(ChannelPreconditionFailed):
            await attacker.publish(TASK, user_id=user)
    # RabbitMQ 3 does not check the routing keys in CC and BCC; they must not create tasks of the other customer.
    keys = [f"task.submitted.{OTHER}", f"batch.submitted.{OTHER}"]
    own = {keyed_id(SubmissionKind.TASK, CUSTOMER, "honest")}
    try:
        await attacker.publish(TASK, message_id="cc", headers={"CC": keys, "BCC": keys})
    except ChannelAccessRefused:
        await watch.until(1, 3)
        assert not watch.tasks
    else:
        await watch.until(2, 3)
        own.add(keyed_id(SubmissionKind.TASK, CUSTOMER, "cc"))
    await attacker.publish(TASK, message_id="honest")  # the connection still works
    await watch.until_tasks(len(own), 10)
    assert set(watch.tasks) == own


async def test_forged_bodies_of_a_direct_producer_are_dead_lettered(
    producers: dict[str, Producer], watch: Watch
) -> None:
    """The bodies contain a cust_id, another customer's webhook, or an admission that only the shim may send."""
    attacker = producers[OTHER]
    await attacker.publish(TASK | {"cust_id": CUSTOMER}, message_id="a1")
    await attacker.publish({"tasks": [TASK], "cust_id": CUSTOMER}, kind="batch", message_id="a2")
    await attacker.publish(TASK | {"callback_url": HOOK}, message_id="a3")
    task_id = keyed_id(SubmissionKind.TASK, CUSTOMER, "a4")
    submission = {
        "kind": "task",
        "id": task_id,
        "cust_id": CUSTOMER,
        "key": "a4",
        "fingerprint": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "tasks": [[task_id, "sentiment", False, True, TASK]],
    }
    admitted = {"submission": submission, "created_at": 1, "retention": 60}
    await attacker.publish(admitted, type="ingest.admitted.v1", message_id=task_id)
    await attacker.publish(admitted, type="ingest.admitted.v1", message_id=task_id, user_id=OTHER)
    packed = {"routing_key": f"http.0.task.submitted.{CUSTOMER}", "message_id": task_id, "body": admitted}
    await attacker.publish({"submissions": [packed]}, type="ingest.bundle.v1", message_id=task_id)
    await watch.until(6, 10)
    assert dict(watch.dead) == {"invalid": 3, "forged_admission": 3}
    assert not watch.tasks


@pytest.mark.parametrize(("exchange", "queue"), [("asg.events", "ingest.dead"), ("asg.submissions", "ingest.tasks")])
async def test_broker_refuses_everything_but_publishing_to_a_direct_producer(
    world: World, producers: dict[str, Producer], exchange: str, queue: str
) -> None:
    """A producer cannot declare, bind, read, purge or delete a queue, nor declare, bind or delete an exchange."""
    admin = await aio_pika.connect(world.admin_url)
    async with admin:
        # Producers have the write permission on this name, which binding a queue requires too.
        await (await admin.channel()).declare_queue("asg.submissions", durable=False, auto_delete=True)
        attacker = producers[CUSTOMER].connection
        attacks: list[Callable[[Any], Awaitable[object]]] = [
            lambda channel: channel.declare_queue("", exclusive=True),
            lambda channel: channel.declare_queue("amq.gen-mine"),
            lambda channel: channel.declare_exchange("asg.mine"),
            lambda channel: _bind(channel, queue, exchange),
            lambda channel: _bind(channel, "asg.submissions", exchange),
            lambda channel: _bind_exchange(channel, "asg.submissions", exchange),
            lambda channel: _call_queue(channel, queue, "get"),
            lambda channel: _call_queue(channel, queue, "consume", print),
            lambda channel: _call_queue(channel, queue, "purge"),
            lambda channel: _call_queue(channel, queue, "delete"),
            lambda channel: channel.exchange_delete(exchange),
        ]
        for attack in attacks:
            async with attacker.channel() as channel:
                with pytest.raises(ChannelAccessRefused):
                    await attack(channel)


async def _call_queue(channel: aio_pika.abc.AbstractChannel, queue: str, method: str, *arguments: Any) -> None:
    await getattr(await channel.get_queue(queue, ensure=False), method)(*arguments)


async def _bind(channel: aio_pika.abc.AbstractChannel, queue: str, exchange: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).bind(exchange, "#")


async def _bind_exchange(channel: aio_pika.abc.AbstractChannel, destination: str, source: str) -> None:
    await (await channel.get_exchange(destination, ensure=False)).bind(source, "#")
