"""Bundles on every broker: what travels together is delivered, finished and returned submission by submission."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ingest.broker.bundles.broker import BundlingBroker
from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import admitted, bundles
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Broker, Consumer
from ingest.domain.topology import SUBMISSIONS, route_to

QUEUE = "ingest.http.0"

Open = Callable[[], Awaitable[tuple[Broker, BundlingBroker]]]


@pytest.fixture(params=["embedded", "rabbitmq"])
async def open_broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """A function that opens the broker as a new process does: as it is, and with bundles."""
    url = request.getfixturevalue("rabbitmq_url") if request.param == "rabbitmq" else ""
    opened: list[Broker] = []

    async def open_next() -> tuple[Broker, BundlingBroker]:
        broker: Broker = RabbitBroker(url) if url else await EmbeddedBroker.open(tmp_path / "queue.db")
        await broker.declare()
        bundling = BundlingBroker(broker, frozenset({"guest" if url else "ingest"}))
        opened.append(bundling)
        return broker, bundling

    yield open_next
    for broker in opened:
        await broker.close()


def task(number: int, **changes: object) -> Message:
    fields: dict[str, object] = {
        "exchange": SUBMISSIONS,
        "routing_key": f"{route_to(QUEUE)}.task.submitted.c{number % 3}",
        "body": b'{"number":%d}' % number,
        "message_id": f"tsk_{number}",
        "type": admitted.TYPE,
        "timestamp": 1_775_000_000 + number,
        "headers": {"traceparent": f"00-{number + 1:032x}-{1:016x}-01"} if number % 2 else {},
        "may_be_bundled": True,
    }
    return Message(**(fields | changes))  # type: ignore[arg-type]


async def publish(broker: Broker, messages: list[Message]) -> None:
    publisher = await broker.publisher()
    assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(deliveries) < count:
            deliveries += await consumer.receive()
    return deliveries


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.message_id or "" for delivery in deliveries]


async def test_submissions_of_one_publish_share_messages_and_are_delivered_one_by_one(open_broker: Open) -> None:
    plain, broker = await open_broker()
    sent = [task(number) for number in range(70)]
    await publish(broker, sent)
    consumer = await plain.consumer(QUEUE, 100)
    messages = await take(consumer, 2)
    assert [message.type for message in messages] == [bundles.TYPE] * 2
    assert [len(bundles.unpack(message)) for message in messages] == [bundles.MAX_SUBMISSIONS, 6]
    await consumer.close()

    received = await take(await broker.consumer(QUEUE, 100), 70)
    for message, delivery in zip(sent, received, strict=True):
        assert (delivery.routing_key, delivery.message_id) == (message.routing_key, message.message_id)
        assert (delivery.body, delivery.type) == (message.body, admitted.TYPE)
        assert (delivery.timestamp, delivery.user_id) == (message.timestamp, plain.user)
        assert {name: delivery.headers.get(name) for name in message.headers} == message.headers


async def test_only_small_tasks_with_the_same_route_travel_together(open_broker: Open) -> None:
    plain, broker = await open_broker()
    other = task(2, routing_key="heavy.0.task.submitted.c", message_id="tsk_other")
    alone = task(3, may_be_bundled=False, message_id="tsk_alone")
    large = task(4, body=b'"%s"' % (b"x" * bundles.MAX_BYTES), message_id="tsk_large")
    await publish(broker, [task(0), other, task(1), alone, large, task(5)])
    messages = await take(await plain.consumer(QUEUE, 10), 4)
    contents = [ids(bundles.unpack(one)) if one.type == bundles.TYPE else ids([one]) for one in messages]
    assert contents == [["tsk_0", "tsk_1"], ["tsk_alone"], ["tsk_large"], ["tsk_5"]]
    assert ids(await take(await plain.consumer("ingest.heavy.0", 10), 1)) == ["tsk_other"]


async def test_bundle_is_delivered_again_unless_all_of_it_is_acknowledged(open_broker: Open) -> None:
    _, broker = await open_broker()
    await publish(broker, [task(0), task(1)])
    await publish(broker, [task(2), task(3)])
    consumer = await broker.consumer(QUEUE, 10)
    received = await take(consumer, 4)
    assert consumer.held == 4
    await consumer.ack(received[:3])
    assert consumer.held == 1
    assert [consumer.alive(delivery) for delivery in received] == [False, False, False, True]
    await consumer.ack(received[:3])
    assert consumer.held == 1, "a second ack of a submission counts for no other"
    await consumer.close()
    again = await take(await broker.consumer(QUEUE, 10), 2)
    assert ids(again) == ["tsk_2", "tsk_3"]
    assert all(delivery.redelivered for delivery in again)


async def test_returned_submission_comes_back_by_itself(open_broker: Open) -> None:
    plain, broker = await open_broker()
    await publish(broker, [task(number) for number in range(3)])
    consumer = await broker.consumer(QUEUE, 10)
    first, returned, last = await take(consumer, 3)
    await consumer.requeue([returned])
    (again,) = await take(consumer, 1)
    assert (again.message_id, again.body, again.headers) == (returned.message_id, returned.body, returned.headers)
    async with asyncio.timeout(20):
        while consumer.alive(returned):  # the copy may be here before its confirm
            await asyncio.sleep(0.01)
    await consumer.ack([first, last, again])
    assert consumer.held == 0
    await consumer.close()
    await publish(plain, [task(9, may_be_bundled=False)])
    assert ids(await take(await plain.consumer(QUEUE, 10), 1)) == ["tsk_9"], "nothing else is left"


async def test_bundle_that_is_returned_twice_is_taken_apart(open_broker: Open) -> None:
    """It may contain what crashes workers. The submissions begin again, and are counted one by one."""
    plain, broker = await open_broker()
    await publish(broker, [task(number) for number in range(3)])
    for _ in range(2):
        consumer = await plain.consumer(QUEUE, 10)
        await consumer.requeue(await take(consumer, 1))
        await consumer.close()
    consumer = await broker.consumer(QUEUE, 10)
    received = await take(consumer, 3)
    assert sorted(ids(received)) == ["tsk_0", "tsk_1", "tsk_2"]
    assert [delivery.deliveries for delivery in received] == [0, 0, 0]
    await consumer.close()
    assert all(delivery.type == admitted.TYPE for delivery in await take(await plain.consumer(QUEUE, 10), 3))


async def test_bundles_of_others_are_delivered_as_they_are(open_broker: Open) -> None:
    plain, broker = await open_broker()
    await publish(broker, [task(0), task(1)])
    stranger = BundlingBroker(plain, frozenset({"another"}))
    (delivery,) = await take(await stranger.consumer(QUEUE, 10), 1)
    assert delivery.type == bundles.TYPE


@pytest.mark.parametrize("body", [b'{"submissions":[{}]}', b'{"submissions":[]}', b"[", b"\xff"])
async def test_bundle_that_cannot_be_read_is_delivered_as_it_is(open_broker: Open, body: bytes) -> None:
    _, broker = await open_broker()
    broken = task(0, type=bundles.TYPE, body=body, may_be_bundled=False)
    await publish(broker, [broken, task(1)])
    received = await take(await broker.consumer(QUEUE, 10), 2)
    assert [delivery.type for delivery in received] == [bundles.TYPE, admitted.TYPE]
