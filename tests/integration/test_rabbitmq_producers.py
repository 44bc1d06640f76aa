"""What a direct producer can set on its messages: none of it may affect other customers or the service."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import aiormq
import pytest

from ingest.admission import Admission
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.versions import parse
from ingest.domain import topology
from ingest.domain.customers import Customer
from ingest.domain.dead_letters import DeadLetter, read
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.messages import MAX_MESSAGE
from ingest.store.sqlite import SqliteStore
from ingest.worker import Worker
from tests.contract.test_broker import take
from tests.integration.test_rabbitmq import message, skip_unless_controllable
from tests.servers import RabbitServer
from tests.support.tasks import TASK

SERVICE = frozenset({"guest"})
CUSTOMER = "acme"
KEY = f"task.submitted.{CUSTOMER}"


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    yield broker
    await broker.close()


@pytest.fixture
async def exchange(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> AsyncIterator[aio_pika.abc.AbstractExchange]:
    """The exchange for submissions, as the direct producer `acme` sees it."""
    vhost = rabbitmq_url.rpartition("/")[2]
    rabbitmq.api("PUT", f"users/{CUSTOMER}", {"password": "pw", "tags": ""})
    permissions = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
    rabbitmq.api("PUT", f"permissions/{vhost}/{CUSTOMER}", permissions)
    topic = {"exchange": topology.SUBMISSIONS, "write": r"^(task|batch)\.submitted\.{username}\z", "read": "^$"}
    rabbitmq.api("PUT", f"topic-permissions/{vhost}/{CUSTOMER}", topic)
    connection = await aio_pika.connect(rabbitmq_url.replace("guest:guest", f"{CUSTOMER}:pw"))
    async with connection, connection.channel(on_return_raises=True) as channel:
        yield await channel.get_exchange(topology.SUBMISSIONS, ensure=False)


@asynccontextmanager
async def running_worker(broker: RabbitBroker, tmp_path: Path) -> AsyncIterator[Worker]:
    """Run a worker that knows the customer `acme`."""
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id=CUSTOMER))
    worker = Worker(
        store=store,
        broker=broker,
        admission=Admission(store),
        trusted_users=SERVICE,
        prefetch={topology.INGEST_TASKS: 100, topology.INGEST_BATCHES: 4},
    )
    running = asyncio.create_task(worker.run())
    yield worker
    worker.stop()
    await asyncio.wait_for(running, 10)
    await store.close()


@pytest.fixture
async def worker(broker: RabbitBroker, tmp_path: Path) -> AsyncIterator[Worker]:
    async with running_worker(broker, tmp_path) as worker:
        yield worker


async def dead_letters(broker: RabbitBroker, count: int) -> dict[str, DeadLetter]:
    """Return so many dead letters by the message_id of their submission. Raises TimeoutError after 15 s."""
    letters = [
        read(delivery, SERVICE) for delivery in await take(await broker.consumer(topology.INGEST_DEAD, 100), count)
    ]
    return {letter.origin.message_id or "": letter for letter in letters if letter.origin is not None}


async def accepted_tasks(broker: RabbitBroker, count: int) -> set[str]:
    """Return the ids of so many accepted tasks. Raises TimeoutError after 15 s."""
    events = await take(await broker.consumer(topology.CONSENSUS_TASKS, 100), count)
    return {json.loads(event.body)["data"]["task_id"] for event in events}


def task_id(message_id: str) -> str:
    return keyed_id(SubmissionKind.TASK, CUSTOMER, message_id)


def submission(message_id: str, body: bytes = json.dumps(TASK).encode(), **properties: Any) -> aio_pika.Message:
    return aio_pika.Message(body, message_id=message_id, user_id=CUSTOMER, **properties)


async def test_delivery_counts_that_a_producer_forged_are_ignored(
    broker: RabbitBroker, exchange: aio_pika.abc.AbstractExchange
) -> None:
    """Otherwise its messages would start the quarantine, which delays all others, whenever a worker restarts."""
    forged = {"x-delivery-count": 15, "x-acquired-count": 15}
    await exchange.publish(submission("forged", headers=forged), KEY)
    await exchange.publish(submission("plain"), KEY)
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    assert [delivery.deliveries for delivery in await take(consumer, 2)] == [0, 0]
    await consumer.close()
    redelivered = await take(await broker.consumer(topology.INGEST_TASKS, 10), 2)
    assert {delivery.message_id: delivery.deliveries for delivery in redelivered} == {"forged": 1, "plain": 1}


async def test_message_with_a_high_priority_is_rejected(
    broker: RabbitBroker, exchange: aio_pika.abc.AbstractExchange, worker: Worker
) -> None:
    """RabbitMQ 4 delivers it before the messages of other customers. It is rejected on every version."""
    for priority in (4, 5, 255):
        await exchange.publish(submission(f"p{priority}", priority=priority), KEY)
    await exchange.publish(submission("plain"), KEY)
    assert await accepted_tasks(broker, 2) == {task_id("p4"), task_id("plain")}
    letters = await dead_letters(broker, 2)
    assert {name: letter.reason for name, letter in letters.items()} == {"p5": "bad_property", "p255": "bad_property"}


async def test_order_of_delivery_depends_on_the_priority_since_rabbitmq_4(
    broker: RabbitBroker, exchange: aio_pika.abc.AbstractExchange, rabbitmq: RabbitServer
) -> None:
    """Without the property a message has priority 4. `bad_property` and deploy/producers.md are based on this."""
    await (await broker.publisher()).publish([message(1, KEY)])
    for priority in (0, 4, 5, 255):
        await exchange.publish(submission(f"p{priority}", priority=priority), KEY)
    consumer = await broker.consumer(topology.INGEST_TASKS, 1)
    order: list[str | None] = []
    while len(order) < 5:
        (delivery,) = await take(consumer, 1)
        order.append(delivery.message_id)
        await consumer.ack([delivery])
    version = parse(rabbitmq.api("GET", "overview")["rabbitmq_version"])
    if version >= (4, 3):
        assert order == ["p255", "p5", "m1", "p4", "p0"]
    elif version >= (4, 0):
        assert order.index("p5") < order.index("p4")
    else:
        assert order == ["m1", "p0", "p4", "p5", "p255"]


async def test_large_header_tables_do_not_delay_the_submissions_of_others(
    broker: RabbitBroker, exchange: aio_pika.abc.AbstractExchange, tmp_path: Path
) -> None:
    """To decode such a table completely takes almost a second, in which the worker does nothing else."""
    headers: dict[str, Any] = {"x": [None] * 100_000}
    for number in range(30):
        await exchange.publish(submission(f"h{number}", headers=headers | {"n": number}), KEY)
    await exchange.publish(submission("plain"), KEY)
    start = time.monotonic()
    async with running_worker(broker, tmp_path):
        assert task_id("plain") in await accepted_tasks(broker, 31)
    assert time.monotonic() - start < 10
    assert sum(state.reconnects for state in broker.connections()) == 0


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_further_routing_keys_submit_for_no_other_customer(
    broker: RabbitBroker, exchange: aio_pika.abc.AbstractExchange, worker: Worker, rabbitmq: RabbitServer, header: str
) -> None:
    """RabbitMQ 4 checks the permission of each key. RabbitMQ 3 does not, but delivers only the first key.

    So the copy in the queue for batches is a duplicate of the producer's own task.
    """
    copied = submission("copied", headers={header: ["task.submitted.other", "batch.submitted.other"]})
    if parse(rabbitmq.api("GET", "overview")["rabbitmq_version"]) >= (4, 0):
        with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
            await exchange.publish(copied, KEY)
        return
    async with await broker.connect() as connection:
        channel = await connection.channel()
        feedback = await channel.declare_queue(exclusive=True)
        await feedback.bind(topology.EVENTS, "submission.#")
        await exchange.publish(copied, KEY)
        events = await take(await broker.consumer(topology.CONSENSUS_TASKS, 100), 1)
        assert [json.loads(event.body)["data"]["cust_id"] for event in events] == [CUSTOMER]
        async with asyncio.timeout(10), feedback.iterator(no_ack=True) as messages:
            message = await anext(messages)
    assert message.routing_key == f"submission.duplicate.{CUSTOMER}"


async def test_largest_message_is_rejected_and_its_neighbours_are_accepted(
    broker: RabbitBroker, exchange: aio_pika.abc.AbstractExchange, worker: Worker
) -> None:
    await exchange.publish(submission("before"), KEY)
    await exchange.publish(submission("largest", bytes(MAX_MESSAGE)), KEY)
    await exchange.publish(submission("after"), KEY)
    assert await accepted_tasks(broker, 2) == {task_id("before"), task_id("after")}
    letters = await dead_letters(broker, 1)
    assert {name: letter.reason for name, letter in letters.items()} == {"largest": "too_large"}
    assert sum(state.reconnects for state in broker.connections()) == 0


async def test_confirmed_message_that_is_not_persistent_survives_a_kill_of_the_broker(
    broker: RabbitBroker, exchange: aio_pika.abc.AbstractExchange, rabbitmq: RabbitServer
) -> None:
    """Quorum queues store every message, so delivery_mode 1 loses nothing."""
    skip_unless_controllable(rabbitmq)
    transient = submission("transient", delivery_mode=aio_pika.DeliveryMode.NOT_PERSISTENT)
    await exchange.publish(transient, KEY)
    await asyncio.to_thread(rabbitmq.kill)
    await asyncio.to_thread(rabbitmq.start)
    (delivery,) = await take(await broker.consumer(topology.INGEST_TASKS, 10), 1)
    assert delivery.message_id == "transient"
