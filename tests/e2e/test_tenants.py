"""Two customers of one service, each after what is the other's: over HTTP by API key, over AMQP as a broker user."""

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
ELSEWHERE = "https://hooks.nobody.example/asg"
REPRESENT = {"Prefer": "return=representation"}


@pytest.fixture(scope="module")
def world(rabbitmq: RabbitServer, aerospike: AerospikeServer) -> Iterator[World]:
    """With a webhook that only `acme` has registered, and `other` strict: a mismatch of its own is 422."""
    with World(rabbitmq, aerospike) as world:
        world.ingest("webhook", "add", CUSTOMER, HOOK)
        world.ingest("customer", "set", CUSTOMER, "--quota", "1000")
        world.ingest("customer", "set", OTHER, "--quota", "1000", "--strict")
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


def _is_new(answer: httpx.Response) -> None:
    """Nothing in it tells that anybody has used the key."""
    assert answer.status_code == 202, answer.text
    assert "idempotent" not in answer.json()
    assert not {"idempotent-replayed", "idempotency-payload-mismatch"} & set(answer.headers)


def test_one_key_of_two_customers_is_two_keys(acme: httpx.Client, other: httpx.Client) -> None:
    """Two ids; no replay, no mismatch for another body; each replays its own, and mismatches with its own only."""
    body = TASK | {"idempotency_key": "shared"}
    first, second = acme.post("/v1/tasks", json=body), other.post("/v1/tasks", json=body | {"type": "moderation"})
    _is_new(first)
    _is_new(second)
    assert first.json()["task_id"] != second.json()["task_id"]
    for client, own, kind in ((acme, first, body["type"]), (other, second, "moderation")):
        again = client.post("/v1/tasks", json=body | {"type": kind})
        assert (again.status_code, again.json()["task_id"]) == (200, own.json()["task_id"])
        assert "Idempotency-Payload-Mismatch" not in again.headers
    mismatch = acme.post("/v1/tasks", json=body | {"type": "sentiment"})
    assert mismatch.headers["Idempotency-Payload-Mismatch"] == "true"
    assert other.post("/v1/tasks", json=body | {"type": "sentiment"}).status_code == 422


def test_keys_of_batches_and_of_their_items_are_apart(acme: httpx.Client, other: httpx.Client) -> None:
    """A batch with the keys of another's batch, and items with the keys of another's tasks, are all new."""
    single = acme.post("/v1/tasks", json=TASK | {"idempotency_key": "item-0"}).json()["task_id"]
    body = {
        "idempotency_key": "batch",
        "tasks": [TASK | {"idempotency_key": "item-0"}, TASK | {"idempotency_key": "item-1"}, TASK],
    }
    first = acme.post("/v1/tasks/batch", json=body, headers=REPRESENT)
    second = other.post("/v1/tasks/batch", json=body | {"tasks": body["tasks"][::-1]}, headers=REPRESENT)
    _is_new(first)
    _is_new(second)
    assert first.json()["task_ids"][0] == single
    assert first.json()["batch_id"] != second.json()["batch_id"]
    assert not {single, *first.json()["task_ids"]} & set(second.json()["task_ids"])


def test_what_is_anothers_looks_like_what_never_was(acme: httpx.Client, other: httpx.Client) -> None:
    """GET of another's task, batch and items of a batch: status, headers and body of an id that nobody has."""
    task = acme.post("/v1/tasks", json=TASK).json()["task_id"]
    batch = acme.post("/v1/tasks/batch", json={"tasks": [TASK, TASK | {"idempotency_key": "g"}]}, headers=REPRESENT)
    batch_id, items = batch.json()["batch_id"], batch.json()["task_ids"]
    unknown = fresh_id(SubmissionKind.BATCH)
    paths = [
        (f"/v1/tasks/{task}", f"/v1/tasks/{fresh_id(SubmissionKind.TASK)}"),
        (f"/v1/tasks/batch/{batch_id}", f"/v1/tasks/batch/{unknown}"),
        *[(f"/v1/tasks/{item}", f"/v1/tasks/{item_id(unknown, 0)}") for item in items],
    ]
    for path, nowhere in paths:
        assert acme.get(path).status_code == 200
        seen, reference = other.get(path), other.get(nowhere)
        assert (seen.status_code, seen.content) == (404, reference.content)
        assert set(seen.headers) == set(reference.headers)


@pytest.mark.parametrize("where", ["task", "batch", "item"])
def test_a_webhook_of_another_is_no_webhook(acme: httpx.Client, other: httpx.Client, where: str) -> None:
    """callback_url registered by the other customer only: 400, in the words for one that nobody has registered."""

    def post(client: httpx.Client, url: str) -> httpx.Response:
        if where == "task":
            return client.post("/v1/tasks", json=TASK | {"callback_url": url})
        tasks = [TASK, TASK | {"callback_url": url}] if where == "item" else [TASK]
        return client.post(
            "/v1/tasks/batch", json={"tasks": tasks} | ({"callback_url": url} if where == "batch" else {})
        )

    assert post(acme, HOOK).status_code == 202
    seen = post(other, HOOK)
    assert (seen.status_code, seen.content) == (400, post(other, ELSEWHERE).content)


def test_fields_cannot_make_one_another(other: httpx.Client) -> None:
    """cust_id and its like are unknown fields, in a task, a batch and an item."""
    forged = TASK | {"cust_id": CUSTOMER}
    for path, body in (
        ("/v1/tasks", forged),
        ("/v1/tasks/batch", {"tasks": [TASK], "cust_id": CUSTOMER}),
        ("/v1/tasks/batch", {"tasks": [forged]}),
    ):
        answer = other.post(path, json=body, headers={"X-Cust-Id": CUSTOMER})
        assert answer.status_code == 400
        assert answer.json()["error"].endswith("cust_id is not a known field")


def test_the_quota_of_one_is_not_the_others(world: World, acme: httpx.Client, other: httpx.Client) -> None:
    """One uses its own up, and tries with keys of the other: 403, and the other has not paid for any of it."""
    used = {name: world.ingest("customer", "show", name)["used_this_month"] for name in (CUSTOMER, OTHER)}
    world.ingest("customer", "set", OTHER, "--quota", str(used[OTHER] + 2))
    body = TASK | {"idempotency_key": "paid by acme"}
    time.sleep(FRESH + 0.5)  # until the shim has read the quota anew
    try:
        _is_new(acme.post("/v1/tasks", json=body))
        answers = [other.post("/v1/tasks", json=TASK).status_code for _ in range(2)]
        assert answers == [202, 202]
        refused = [other.post("/v1/tasks", json=body), other.post("/v1/tasks/batch", json={"tasks": [body, TASK]})]
        assert [(each.status_code, each.json()) for each in refused] == [(403, {"error": "quota exhausted"})] * 2
        _is_new(acme.post("/v1/tasks", json=TASK))
        for name in (CUSTOMER, OTHER):
            assert world.ingest("customer", "show", name)["used_this_month"] == used[name] + 2
    finally:
        world.ingest("customer", "set", OTHER, "--quota", "1000")


class Producer:
    """The connection of one customer's broker user; each attack has a channel of its own, for it may end it."""

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
    made = {name: Producer(name, await aio_pika.connect(url)) for name, url in world.producer_urls.items()}
    yield made
    for each in made.values():
        await each.connection.close()


@pytest.fixture
async def watch(world: World) -> AsyncIterator[Watch]:
    """Everything that comes out from now on."""
    watch = Watch(world.admin_url)
    await watch.start()
    await asyncio.sleep(1)  # what earlier tests have left
    for each in (watch.tasks, watch.outcomes, watch.dead):
        each.clear()
    yield watch
    await watch.close()


async def test_one_key_over_amqp_is_two_keys_and_the_same_as_over_http(
    acme: httpx.Client, other: httpx.Client, producers: dict[str, Producer], watch: Watch
) -> None:
    """Two customers, one message_id: two tasks. Over HTTP each finds its own under that key, the other never."""
    for producer in producers.values():
        await producer.publish(TASK, message_id="both ways")
    await watch.until(2, 10)
    ids = [keyed_id(SubmissionKind.TASK, name, "both ways") for name in (CUSTOMER, OTHER)]
    assert dict(watch.tasks) == {ids[0]: 1, ids[1]: 1}
    for client, own, foreign in ((acme, ids[0], ids[1]), (other, ids[1], ids[0])):
        again = client.post("/v1/tasks", json=TASK, headers={"Idempotency-Key": "both ways"})
        assert (again.status_code, again.json()["task_id"]) == (200, own)
        assert client.get(f"/v1/tasks/{own}").status_code == 200
        assert client.get(f"/v1/tasks/{foreign}").status_code == 404


async def test_another_may_not_be_published_for(producers: dict[str, Producer], watch: Watch) -> None:
    """The broker refuses another's routing key, and a user_id that is not one's own, and ends the channel."""
    attacker = producers[CUSTOMER]
    for kind in ("task", "batch"):
        with pytest.raises(ChannelAccessRefused):
            await attacker.publish(TASK, to=OTHER, kind=kind)
    for user in (OTHER, "ingest"):
        with pytest.raises(ChannelPreconditionFailed):
            await attacker.publish(TASK, user_id=user)
    # The broker checks the routing key, not those in CC and BCC: they must lead nowhere else either.
    keys = [f"task.submitted.{OTHER}", f"batch.submitted.{OTHER}"]
    await attacker.publish(TASK, message_id="cc", headers={"CC": keys, "BCC": keys})
    await watch.until(2, 3)
    assert set(watch.tasks) <= {keyed_id(SubmissionKind.TASK, CUSTOMER, "cc")}
    await attacker.publish(TASK, message_id="honest")  # its connection is as good as before
    await watch.until_tasks(2, 10)
    assert keyed_id(SubmissionKind.TASK, CUSTOMER, "honest") in watch.tasks


async def test_the_body_does_not_say_who_one_is(producers: dict[str, Producer], watch: Watch) -> None:
    """cust_id in a body, another's webhook, and what only the shim may say: each in ingest.dead, nothing accepted."""
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
    await watch.until(5, 10)
    assert dict(watch.dead) == {"invalid": 3, "forged_admission": 2}
    assert not watch.tasks


@pytest.mark.parametrize(("exchange", "queue"), [("asg.events", "ingest.dead"), ("asg.submissions", "ingest.tasks")])
async def test_nobody_listens_in(world: World, producers: dict[str, Producer], exchange: str, queue: str) -> None:
    """Binding to an exchange, queues of one's own, and reading, emptying or removing a queue: all refused."""
    admin = await aio_pika.connect(world.admin_url)
    async with admin:
        await (await admin.channel()).declare_queue(
            "asg.submissions", durable=False, auto_delete=True
        )  # one may write it
        attacker = producers[CUSTOMER].connection
        attacks: list[Callable[[Any], Awaitable[object]]] = [
            lambda channel: channel.declare_queue("", exclusive=True),
            lambda channel: channel.declare_queue("amq.gen-mine"),
            lambda channel: channel.declare_exchange("asg.mine"),
            lambda channel: _bind(channel, queue, exchange),
            lambda channel: _bind(channel, "asg.submissions", exchange),
            lambda channel: _bind_exchange(channel, "asg.submissions", exchange),
            lambda channel: _queue(channel, queue, "get"),
            lambda channel: _queue(channel, queue, "consume", print),
            lambda channel: _queue(channel, queue, "purge"),
            lambda channel: _queue(channel, queue, "delete"),
            lambda channel: channel.exchange_delete(exchange),
        ]
        for attack in attacks:
            async with attacker.channel() as channel:
                with pytest.raises(ChannelAccessRefused):
                    await attack(channel)


async def _queue(channel: aio_pika.abc.AbstractChannel, queue: str, verb: str, *arguments: Any) -> None:
    await getattr(await channel.get_queue(queue, ensure=False), verb)(*arguments)


async def _bind(channel: aio_pika.abc.AbstractChannel, queue: str, exchange: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).bind(exchange, "#")


async def _bind_exchange(channel: aio_pika.abc.AbstractChannel, destination: str, source: str) -> None:
    await (await channel.get_exchange(destination, ensure=False)).bind(source, "#")
