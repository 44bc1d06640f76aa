"""The promises of `domain.ports.Broker`, `Publisher` and `Consumer`, tested on every broker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Broker, Consumer
from ingest.telemetry.broker import MeteredBroker
from ingest.telemetry.prometheus import PrometheusMeter
from ingest.telemetry.tracing import TracedBroker
from tests.servers import RabbitServer

OpenBroker = Callable[[], Awaitable[Broker]]


@pytest.fixture(params=["embedded", "rabbitmq", "embedded, metered and traced"])
async def open_broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenBroker]:
    """A function that opens the broker as a new process does. At the end, the fixture closes all that were opened."""
    brokers: list[Broker] = []
    url = request.getfixturevalue("rabbitmq_url") if request.param == "rabbitmq" else ""
    if url:
        limit_deliveries(request.getfixturevalue("rabbitmq"), url)

    async def open_next() -> Broker:
        broker: Broker = RabbitBroker(url) if url else await EmbeddedBroker.open(tmp_path / "queue.db")
        if "traced" in request.param:
            traced = TracedBroker(broker, TracerProvider().get_tracer("test"), "test")
            broker = MeteredBroker(traced, PrometheusMeter())
        await broker.declare()
        brokers.append(broker)
        return broker

    yield open_next
    for broker in brokers:
        await broker.close()


@pytest.fixture
async def broker(open_broker: OpenBroker) -> Broker:
    return await open_broker()


def limit_deliveries(server: RabbitServer, url: str) -> None:
    """Set the delivery limit by a policy, as operators do."""
    definition = {"delivery-limit": topology.DELIVERY_LIMIT, "dead-letter-exchange": topology.DEAD}
    body = {"pattern": "^ingest\\.(tasks|batches)$", "definition": definition, "apply-to": "queues"}
    server.api("PUT", f"policies/{url.rpartition('/')[2]}/ingest", body)


def message(number: int = 0, **changes: Any) -> Message:
    fields: dict[str, Any] = {
        "exchange": topology.SUBMISSIONS,
        "routing_key": "task.submitted.c",
        "body": b"%d" % number,
        "message_id": f"m{number}",
    }
    return Message(**(fields | changes))


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    """Receive at least `count` deliveries without acknowledging them. Raises TimeoutError after 15 s."""
    deliveries: list[Delivery] = []
    async with asyncio.timeout(15):
        while len(deliveries) < count:
            deliveries += await consumer.receive()
    return deliveries


def numbers(deliveries: list[Delivery]) -> list[int]:
    """Return the numbers that `message` wrote into the bodies."""
    return [int(delivery.body) for delivery in deliveries]


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queues"),
    [
        (topology.SUBMISSIONS, "task.submitted.c", [topology.INGEST_TASKS]),
        (topology.SUBMISSIONS, "batch.submitted.c", [topology.INGEST_BATCHES]),
        (topology.EVENTS, "task.accepted.moderation.none", [topology.CONSENSUS_TASKS]),
        (topology.EVENTS, "task.accepted.moderation.webhook", [topology.CONSENSUS_TASKS, topology.WEBHOOK_DISPATCH]),
        (topology.EVENTS, "batch.accepted.webhook", [topology.WEBHOOK_DISPATCH]),
        (topology.DEAD, "rejected.invalid", [topology.INGEST_DEAD]),
    ],
)
async def test_message_reaches_queues_of_its_routing_key_with_all_properties(
    broker: Broker, exchange: str, routing_key: str, queues: list[str]
) -> None:
    publisher = await broker.publisher()
    sent = message(
        1,
        exchange=exchange,
        routing_key=routing_key,
        headers={"tracestate": "a=ü", "x-other": 1},
        type="t",
        content_type="application/x",
        timestamp=1_775_000_000,
    )
    assert await publisher.publish([sent]) == [PublishOutcome.CONFIRMED]
    for queue in queues:
        (delivery,) = await take(await broker.consumer(queue, 10), 1)
        properties = (delivery.body, delivery.routing_key, delivery.message_id, delivery.type)
        assert properties == (sent.body, routing_key, "m1", "t")
        # Headers that the service does not read may be missing.
        assert (delivery.content_type, delivery.queue) == ("application/x", queue)
        assert delivery.headers["tracestate"] == "a=ü"
        assert (delivery.redelivered, delivery.deliveries, delivery.timestamp) == (False, 0, 1_775_000_000)
        assert delivery.user_id in ("guest", "ingest")


@pytest.mark.parametrize("timestamp", [None, 0, 2**63 - 1])
async def test_redelivery_has_the_same_timestamp(broker: Broker, timestamp: int | None) -> None:
    publisher = await broker.publisher()
    await publisher.publish([message(1, timestamp=timestamp)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    (delivery,) = await take(consumer, 1)
    await consumer.requeue([delivery])
    (redelivery,) = await take(consumer, 1)
    assert (delivery.timestamp, redelivery.timestamp) == (timestamp, timestamp)


async def test_only_mandatory_message_without_queue_is_unroutable(broker: Broker) -> None:
    """Other messages of the same call are confirmed, including those with the same message_id."""
    publisher = await broker.publisher()
    unroutable = message(1, exchange=topology.EVENTS, routing_key="not.bound")
    optional = message(1, exchange=topology.EVENTS, routing_key="not.bound", mandatory=False)
    outcomes = await publisher.publish([message(1), unroutable, optional, message(1)])
    assert outcomes == [PublishOutcome.CONFIRMED, PublishOutcome.UNROUTABLE] + [PublishOutcome.CONFIRMED] * 2


async def test_large_messages_get_their_own_outcomes(broker: Broker) -> None:
    """A returned message of many frames changes neither the outcomes of its neighbours nor those of later publishes."""
    publisher = await broker.publisher()
    unroutable = message(1, exchange=topology.EVENTS, routing_key="not.bound", body=b"x" * 1_000_000)
    large = message(2, body=b"y" * 1_000_000)
    outcomes = await publisher.publish([large, unroutable, large, unroutable])
    assert outcomes == [PublishOutcome.CONFIRMED, PublishOutcome.UNROUTABLE] * 2
    assert await publisher.publish([message(3)]) == [PublishOutcome.CONFIRMED]


async def test_5000_messages_of_one_publish_are_delivered_in_order(broker: Broker) -> None:
    publisher = await broker.publisher()
    outcomes = await publisher.publish([message(i) for i in range(5000)])
    assert set(outcomes) == {PublishOutcome.CONFIRMED}
    consumer = await broker.consumer(topology.INGEST_TASKS, 500)
    deliveries: list[Delivery] = []
    while len(deliveries) < 5000:
        received = await take(consumer, 1)
        await consumer.ack(received)
        deliveries += received
    assert numbers(deliveries) == list(range(5000))


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 3_000_000])
async def test_body_of_any_size_is_delivered_unchanged(broker: Broker, size: int) -> None:
    """131,064 bytes fit into one frame of RabbitMQ's default size; larger bodies need several."""
    publisher = await broker.publisher()
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert await publisher.publish([message(1, body=body)]) == [PublishOutcome.CONFIRMED]
    (delivery,) = await take(await broker.consumer(topology.INGEST_TASKS, 10), 1)
    assert delivery.body == body


async def test_consumer_holds_at_most_prefetch_and_ack_brings_the_next_delivery(broker: Broker) -> None:
    publisher = await broker.publisher()
    await publisher.publish([message(i) for i in range(10)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 4)
    first = await take(consumer, 4)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consumer.receive(), 0.3)
    await consumer.ack(first[1:3])
    following = await take(consumer, 2)
    assert numbers(first + following) == list(range(6))


async def test_only_unacknowledged_deliveries_are_redelivered_after_close(
    broker: Broker, open_broker: OpenBroker
) -> None:
    """The order of the acks does not matter."""
    publisher = await broker.publisher()
    await publisher.publish([message(i) for i in range(6)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    deliveries = await take(consumer, 6)
    await consumer.ack([deliveries[4], deliveries[0], deliveries[2]])
    await consumer.ack([deliveries[1]])
    await broker.close()
    remaining = await take(await (await open_broker()).consumer(topology.INGEST_TASKS, 10), 2)
    assert [(int(delivery.body), delivery.redelivered) for delivery in remaining] == [(3, True), (5, True)]


async def test_requeue_is_counted_and_message_over_the_limit_becomes_dead_letter(broker: Broker) -> None:
    """The message is in `ingest.dead` then, with its body, id, headers and timestamp."""
    publisher = await broker.publisher()
    await publisher.publish([message(7, headers={"tracestate": "a=1"}, timestamp=1_775_000_000)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    counts: list[int] = []
    while not counts or counts[-1] < topology.DELIVERY_LIMIT:
        (delivery,) = await take(consumer, 1)
        counts.append(delivery.deliveries)
        assert delivery.redelivered == (delivery.deliveries > 0)
        await consumer.requeue([delivery])
    # RabbitMQ adds a return of its own if it delivers to a consumer that is cancelled at that moment.
    assert counts[:3] == [0, 1, 2]
    assert len(counts) in (topology.DELIVERY_LIMIT, topology.DELIVERY_LIMIT + 1)
    (dead,) = await take(await broker.consumer(topology.INGEST_DEAD, 10), 1)
    assert (dead.body, dead.message_id, dead.headers["tracestate"]) == (b"7", "m7", "a=1")
    assert dead.timestamp == 1_775_000_000
    assert dead.headers["x-first-death-reason"] == "delivery_limit"


async def test_stopped_consumer_receives_nothing_more_and_can_still_ack(
    broker: Broker, open_broker: OpenBroker
) -> None:
    publisher = await broker.publisher()
    await publisher.publish([message(1)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    deliveries = await take(consumer, 1)
    await consumer.stop()
    await publisher.publish([message(2)])
    assert await consumer.receive() == []
    assert await consumer.receive() == []
    await consumer.ack(deliveries)
    await broker.close()
    (remaining,) = await take(await (await open_broker()).consumer(topology.INGEST_TASKS, 10), 1)
    assert (remaining.body, remaining.redelivered) == (b"2", False)


async def test_stop_ends_a_waiting_receive(broker: Broker) -> None:
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    receiving = asyncio.create_task(consumer.receive())
    await asyncio.sleep(0.05)
    await consumer.stop()
    assert await asyncio.wait_for(receiving, 5) == []


async def test_delivery_of_closed_consumer_cannot_be_acknowledged_and_is_redelivered(broker: Broker) -> None:
    """An ack and a requeue after `close` are ignored."""
    publisher = await broker.publisher()
    await publisher.publish([message(1)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    (delivery,) = await take(consumer, 1)
    assert consumer.alive(delivery)
    await consumer.close()
    assert not consumer.alive(delivery)
    await consumer.ack([delivery])
    await consumer.requeue([delivery])
    (redelivery,) = await take(await broker.consumer(topology.INGEST_TASKS, 10), 1)
    assert (redelivery.body, redelivery.redelivered, redelivery.deliveries) == (b"1", True, 1)


async def test_competing_consumers_get_each_message_once(broker: Broker) -> None:
    publisher = await broker.publisher()
    first = await broker.consumer(topology.INGEST_TASKS, 5)
    second = await broker.consumer(topology.INGEST_TASKS, 5)
    await publisher.publish([message(i) for i in range(10)])
    of_first, of_second = await asyncio.gather(take(first, 5), take(second, 5))
    assert sorted(numbers(of_first + of_second)) == list(range(10))


async def test_concurrent_publishes_get_their_own_outcomes(broker: Broker) -> None:
    """100 callers publish at once, each with routable and unroutable messages."""
    publisher = await broker.publisher()

    async def outcomes_are_correct(number: int) -> bool:
        routable, unroutable = message(number), message(number, exchange=topology.EVENTS, routing_key="unbound")
        messages = [routable, unroutable] if number % 2 else [unroutable, routable, routable]
        outcomes = await publisher.publish(messages)
        confirmed = [outcome is PublishOutcome.CONFIRMED for outcome in outcomes]
        return confirmed == [sent is routable for sent in messages]

    assert all(await asyncio.gather(*[outcomes_are_correct(i) for i in range(100)]))


async def test_cancelled_publish_does_not_affect_later_publishes(broker: Broker) -> None:
    publisher = await broker.publisher()
    publishing = asyncio.create_task(publisher.publish([message(1)]))
    await asyncio.sleep(0)
    publishing.cancel()
    await asyncio.wait([publishing])
    assert await publisher.publish([message(2)]) == [PublishOutcome.CONFIRMED]


async def test_closed_publisher_sends_nothing_and_is_not_ready(broker: Broker) -> None:
    publisher = await broker.publisher()
    await publisher.ready()
    assert await publisher.publish([]) == []
    await publisher.close()
    assert await publisher.publish([message(1)]) == [PublishOutcome.UNSENT]
    with pytest.raises(BrokerUnavailable):
        await publisher.ready()


async def test_paused_consumer_returns_its_deliveries_and_receives_nothing_until_resumed(broker: Broker) -> None:
    publisher = await broker.publisher()
    await publisher.publish([message(i) for i in range(3)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    held = await take(consumer, 3)
    await consumer.pause()
    other = await broker.consumer(topology.INGEST_TASKS, 10)
    assert set(numbers(await take(other, 3))) == {0, 1, 2}
    assert not any(consumer.alive(delivery) for delivery in held)
    await other.close()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consumer.receive(), 1)
    await consumer.resume()
    redeliveries: list[Delivery] = []
    while len(redeliveries) < 3:
        received = await take(consumer, 1)
        await consumer.ack(received)
        redeliveries += received
    assert sorted(numbers(redeliveries)) == [0, 1, 2]
    assert all(delivery.redelivered for delivery in redeliveries)
