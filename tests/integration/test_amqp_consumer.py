"""A consumer of the SDK on a real RabbitMQ."""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asg_gateway import BrokerRefusedError
from asg_gateway.amqp import Consumer, Event, MemoryDedupe, Park, SqlDedupe, TaskAccepted
from asg_gateway.amqp.testing import encode, task_accepted

from tests.servers import RabbitServer
from tests.support.parked_topology import Broker, declared

QUEUE = "consensus.tasks"
PARKED = f"{QUEUE}.parked"
EVENTS = [task_accepted(id=f"event-{number}") for number in range(20)]
IDS = [event.id for event in EVENTS]


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[Broker]:
    async with declared(rabbitmq_url) as broker:
        yield broker


@asynccontextmanager
async def running(consumer: Consumer) -> AsyncIterator[asyncio.Task[None]]:
    """Run a consumer during the body, and stop it at the end."""
    task = asyncio.create_task(consumer.run())
    try:
        yield task
    finally:
        consumer.stop()
        await asyncio.wait_for(task, 30)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def until_empty(broker: Broker, queue: str = QUEUE) -> None:
    """Wait until a queue holds nothing, acknowledged by all; call it when no consumer runs."""
    async with asyncio.timeout(10):
        while await broker.count(queue):
            await asyncio.sleep(0.05)


def noting(url: str, noted: list[str], **options: Any) -> Consumer:
    """Return a consumer that notes the ids of events."""
    return Consumer(url, QUEUE, lambda event: noted.append(event.id), **{"dedupe": MemoryDedupe(), **options})


async def test_copies_of_events_are_handled_once_and_all_are_acknowledged(
    broker: Broker, rabbitmq_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "app.db"

    def handle(event: TaskAccepted, connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS tasks (task_id TEXT, id TEXT)")
        connection.execute("INSERT INTO tasks VALUES (?, ?)", (event.task_id, event.id))

    await broker.publish(QUEUE, *EVENTS, *EVENTS)
    consumer = Consumer(rabbitmq_url, QUEUE, handle, dedupe=SqlDedupe(lambda: sqlite3.connect(path)))
    async with running(consumer):
        await until(lambda: consumer.stats.handled + consumer.stats.duplicates == 40)
        await broker.publish(QUEUE, EVENTS[0])
        await until(lambda: consumer.stats.duplicates == 21)
    assert (consumer.stats.handled, consumer.stats.parked) == (20, 0)
    connection = sqlite3.connect(path)
    assert sorted(row[0] for row in connection.execute("SELECT id FROM tasks")) == sorted(IDS)
    connection.close()
    await until_empty(broker)


async def test_failing_event_is_retried_while_others_go_on(broker: Broker, rabbitmq_url: str) -> None:
    noted: list[str] = []

    async def handle(event: Event) -> None:
        if event.id == IDS[0] and IDS[0] not in noted and len(noted) < 19:
            raise ValueError("not now")
        noted.append(event.id)

    await broker.publish(QUEUE, *EVENTS)
    consumer = Consumer(rabbitmq_url, QUEUE, handle, dedupe=None, prefetch=2, concurrency=1)
    async with running(consumer):
        await until(lambda: len(noted) == 20)
    assert noted == [*IDS[1:], IDS[0]]
    assert consumer.stats.retried > 0
    await until_empty(broker)


async def test_event_is_parked_after_max_attempts_with_its_body_properties_and_reasons(
    broker: Broker, rabbitmq_url: str
) -> None:
    def handle(event: Event) -> None:
        raise ValueError("label_spec is odd" * 100)

    properties: dict[str, Any] = {"headers": {"traceparent": "t", "x-delivery-count": 3}, "timestamp": 1_700_000_000}
    properties |= {"content_type": "application/cloudevents+json", "user_id": "guest", "expiration": 600}
    await broker.publish(QUEUE, EVENTS[0], **properties)
    consumer = Consumer(rabbitmq_url, QUEUE, handle, dedupe=None, max_attempts=2)
    async with running(consumer):
        await until(lambda: consumer.stats.parked == 1)
    await until_empty(broker)
    message = await broker.take(PARKED)
    assert message is not None
    assert (message.body, message.message_id) == (encode(EVENTS[0]), EVENTS[0].id)
    assert (message.content_type, message.delivery_mode) == ("application/cloudevents+json", 2)
    assert (message.timestamp is not None and message.timestamp.timestamp(), message.expiration) == (
        1_700_000_000,
        None,
    )
    error = str(message.headers["x-parked-error"])
    assert error.startswith("ValueError: label_spec is odd")
    assert len(error) == 500
    assert (message.headers["x-parked-attempts"], message.headers["traceparent"]) == (2, "t")
    assert str(message.headers["x-parked-at"]).endswith("Z")
    assert message.routing_key == QUEUE


async def test_park_and_undecodable_messages_are_parked_at_once(broker: Broker, rabbitmq_url: str) -> None:
    def handle(event: Event) -> None:
        raise Park("the task type is not supported")

    await broker.publish(QUEUE, EVENTS[0], b"no event")
    await broker.publish(QUEUE, b"without a message id", message_id=None)
    consumer = Consumer(rabbitmq_url, QUEUE, handle, dedupe=None)
    async with running(consumer):
        await until(lambda: consumer.stats.parked == 3)
    messages = [await broker.take(PARKED) for _ in range(3)]
    errors = {message.body: message.headers["x-parked-error"] for message in messages if message}
    assert errors[encode(EVENTS[0])] == "Park: the task type is not supported"
    assert str(errors[b"no event"]).startswith("InvalidEventError: the message is not JSON")
    assert b"without a message id" in errors


async def test_missing_parking_queue_is_an_error_that_says_what_to_do(rabbitmq_url: str) -> None:
    async with declared(rabbitmq_url, [QUEUE], parking=False) as broker:
        with pytest.raises(BrokerRefusedError, match=r"consensus.tasks.parked does not exist: .*ingest topology apply"):
            await noting(rabbitmq_url, []).run()
        noted: list[str] = []
        await broker.publish(QUEUE, EVENTS[0])
        async with running(noting(rabbitmq_url, noted, max_attempts=None)):
            await until(lambda: noted == IDS[:1])


async def test_event_is_kept_while_it_cannot_be_parked(
    broker: Broker, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The parking queue is deleted after the start, and declared again."""

    def handle(event: Event) -> None:
        raise Park("odd")

    consumer = Consumer(rabbitmq_url, QUEUE, handle, dedupe=None)
    async with running(consumer):
        await asyncio.sleep(0.5)
        await broker.channel.queue_delete(PARKED)
        await broker.publish(QUEUE, EVENTS[0])
        await until(lambda: "parking_failed" in caplog.text)
        assert "no queue is bound to asg.parked for consensus.tasks" in caplog.text
        assert consumer.stats.parked == 0
        async with declared(rabbitmq_url):
            await until(lambda: consumer.stats.parked == 1)
    await until_empty(broker)
    assert await broker.count(PARKED) == 1


async def test_consumer_of_the_parking_queue_handles_or_parks_again(broker: Broker, rabbitmq_url: str) -> None:
    noted: list[str] = []

    def handle(event: Event) -> None:
        if event.id == IDS[1] and len(noted) < 2:
            noted.append("odd")
            raise Park("odd")
        noted.append(event.id)

    await broker.publish(PARKED, *EVENTS[:2])
    consumer = Consumer(rabbitmq_url, PARKED, handle, dedupe=MemoryDedupe(), concurrency=1, parked_pause=1)
    async with running(consumer):
        await until(lambda: consumer.stats.handled == 2)
    assert (noted, consumer.stats.parked) == ([IDS[0], "odd", IDS[1]], 1)
    await until_empty(broker, PARKED)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("guest:guest", "guest:wr0ng-secret"), "the login was refused"),
        (("/t", "/missing-t"), "the virtual host does not exist"),
    ],
)
async def test_refused_login_is_an_error_without_the_password(
    rabbitmq_url: str, change: tuple[str, str], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = rabbitmq_url.replace(*change)
    with pytest.raises(BrokerRefusedError, match=problem) as caught:
        await noting(url, []).run()
    assert "wr0ng-secret" not in f"{caught.value!r} {caplog.text} {noting(url, [])!r}"


async def test_missing_queue_is_an_error_that_names_it(rabbitmq_url: str) -> None:
    with pytest.raises(BrokerRefusedError, match=r"the queue consensus[.]tasks does not exist: check its name"):
        await noting(rabbitmq_url, []).run()


async def test_user_without_further_permissions_can_consume_and_park(
    broker: Broker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """Read its queue, write to asg.parked: the checks at the start need no more."""
    vhost = rabbitmq_url.rpartition("/")[2]
    rabbitmq.api("PUT", "users/consensus", {"password": "pw", "tags": ""})
    permissions = {"configure": "^$", "write": "^asg[.]parked$", "read": "^consensus[.]tasks$"}
    rabbitmq.api("PUT", f"permissions/{vhost}/consensus", permissions)

    def handle(event: Event) -> None:
        raise Park("odd")

    await broker.publish(QUEUE, EVENTS[0])
    consumer = Consumer(rabbitmq_url.replace("guest:guest", "consensus:pw"), QUEUE, handle, dedupe=None)
    async with running(consumer):
        await until(lambda: consumer.stats.parked == 1)
    assert await broker.count(PARKED) == 1


async def test_connection_closed_while_handlers_run_leads_to_no_second_handling(
    broker: Broker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """The handlers go on, and the copies that come over the new connection wait for them. Nothing else protects."""
    noted: list[str] = []
    go_on = threading.Event()

    def handle(event: Event) -> None:
        noted.append(event.id)
        go_on.wait(30)

    await broker.publish(QUEUE, *EVENTS[:4])
    consumer = Consumer(rabbitmq_url, QUEUE, handle, dedupe=None)
    async with running(consumer):
        await until(lambda: len(noted) == 1)
        await close_connection(rabbitmq)
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(connections, rabbitmq):
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # gives the copy time to be handled, if nothing prevents it
        assert noted == IDS[:1]
        go_on.set()
        await until(lambda: len(noted) == 4)
    assert sorted(noted) == IDS[:4]
    await until_empty(broker)


async def test_consumer_that_the_broker_cancels_subscribes_again(
    broker: Broker, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    noted: list[str] = []
    async with running(noting(rabbitmq_url, noted)):
        await broker.publish(QUEUE, EVENTS[0])
        await until(lambda: noted == IDS[:1])
        await broker.channel.queue_delete(QUEUE)
        await until(lambda: "RabbitMQ has cancelled the consumer" in caplog.text)
        async with declared(rabbitmq_url):
            await broker.publish(QUEUE, EVENTS[1])
            await until(lambda: noted == IDS[:2])


def connections(rabbitmq: RabbitServer) -> list[str]:
    """Return the names of the connections of consumers."""
    return [
        connection["name"]
        for connection in rabbitmq.api("GET", "connections")
        if connection.get("client_properties", {}).get("connection_name") == f"asg-gateway consumes {QUEUE}"
    ]


async def close_connection(rabbitmq: RabbitServer) -> None:
    """Close the connection of the consumer, which the management API shows after some seconds."""
    async with asyncio.timeout(30):
        while not (names := await asyncio.to_thread(connections, rabbitmq)):
            await asyncio.sleep(0.1)
    for name in names:
        await asyncio.to_thread(rabbitmq.close_connection, name)
    async with asyncio.timeout(30):
        while set(await asyncio.to_thread(connections, rabbitmq)) & set(names):
            await asyncio.sleep(0.1)
