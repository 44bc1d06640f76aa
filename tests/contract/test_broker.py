"""What every broker must do: the sentences of `domain.ports`, one test each."""

import asyncio
from collections.abc import AsyncIterator, Callable
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

Reopen = Callable[[], Any]


@pytest.fixture(params=["embedded", "rabbitmq", "embedded, counted and traced"])
async def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Reopen]:
    """Opens the broker, each time as a new process would; closes what is left open."""
    opened: list[Broker] = []
    url = request.getfixturevalue("rabbitmq_url") if request.param == "rabbitmq" else ""
    if url:
        limit_deliveries(request.getfixturevalue("rabbitmq"), url)

    async def open_() -> Broker:
        broker: Broker = RabbitBroker(url) if url else await EmbeddedBroker.open(tmp_path / "queue.db")
        if "traced" in request.param:
            traced = TracedBroker(broker, TracerProvider().get_tracer("test"), "test")
            broker = MeteredBroker(traced, PrometheusMeter())
        await broker.declare()
        opened.append(broker)
        return broker

    yield open_
    for broker in opened:
        await broker.close()


@pytest.fixture
async def broker(reopen: Reopen) -> Broker:
    opened: Broker = await reopen()
    return opened


def limit_deliveries(server: RabbitServer, url: str) -> None:
    """What operators set by policy."""
    definition = {"delivery-limit": topology.DELIVERY_LIMIT, "dead-letter-exchange": topology.DEAD}
    body = {"pattern": "^ingest\\.(tasks|batches)$", "definition": definition, "apply-to": "queues"}
    server.api("PUT", f"policies/{url.rpartition('/')[2]}/ingest", body)


def message(number: int = 0, **changes: Any) -> Message:
    given: dict[str, Any] = {
        "exchange": topology.SUBMISSIONS,
        "routing_key": "task.submitted.c",
        "body": b"%d" % number,
        "message_id": f"m{number}",
    }
    return Message(**(given | changes))


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    """Receive until `count` have come; not acknowledged."""
    out: list[Delivery] = []
    async with asyncio.timeout(15):
        while len(out) < count:
            out += await consumer.receive()
    return out


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
async def test_topic_routing(broker: Broker, exchange: str, routing_key: str, queues: list[str]) -> None:
    """Each routing key reaches the queues of the topology, with all its properties."""
    publisher = await broker.publisher()
    sent = message(
        1,
        exchange=exchange,
        routing_key=routing_key,
        headers={"n": 1, "s": "ü"},
        type="t",
        content_type="application/x",
    )
    assert await publisher.publish([sent]) == [PublishOutcome.CONFIRMED]
    for queue in queues:
        (got,) = await take(await broker.consumer(queue, 10), 1)
        assert (got.body, got.routing_key, got.message_id, got.type) == (sent.body, routing_key, "m1", "t")
        headers = {name: value for name, value in got.headers.items() if name != "traceparent"}  # a tracer's own
        assert (got.content_type, headers, got.queue) == ("application/x", {"n": 1, "s": "ü"}, queue)
        assert (got.redelivered, got.deliveries) == (False, 0)
        assert got.user_id in ("guest", "ingest")


async def test_unroutable_is_told_apart_in_one_list(broker: Broker) -> None:
    """A mandatory message without a queue is UNROUTABLE; its neighbours are not, one of the same id included."""
    publisher = await broker.publisher()
    lost = message(1, exchange=topology.EVENTS, routing_key="nobody.wants")
    optional = message(1, exchange=topology.EVENTS, routing_key="nobody.wants", mandatory=False)
    outcomes = await publisher.publish([message(1), lost, optional, message(1)])
    assert outcomes == [PublishOutcome.CONFIRMED, PublishOutcome.UNROUTABLE] + [PublishOutcome.CONFIRMED] * 2


async def test_large_messages_are_told_apart_too(broker: Broker) -> None:
    """A return of many frames between two that arrive: each has its own outcome, and later publishes theirs."""
    publisher = await broker.publisher()
    lost = message(1, exchange=topology.EVENTS, routing_key="nobody.wants", body=b"x" * 1_000_000)
    large = message(2, body=b"y" * 1_000_000)
    outcomes = await publisher.publish([large, lost, large, lost])
    assert outcomes == [PublishOutcome.CONFIRMED, PublishOutcome.UNROUTABLE] * 2
    assert await publisher.publish([message(3)]) == [PublishOutcome.CONFIRMED]


async def test_a_long_list_keeps_its_order(broker: Broker) -> None:
    """5,000 messages in one call come out in order."""
    publisher = await broker.publisher()
    outcomes = await publisher.publish([message(i) for i in range(5000)])
    assert set(outcomes) == {PublishOutcome.CONFIRMED}
    consumer = await broker.consumer(topology.INGEST_TASKS, 500)
    got: list[Delivery] = []
    while len(got) < 5000:
        some = await take(consumer, 1)
        await consumer.ack(some)
        got += some
    assert [int(each.body) for each in got] == list(range(5000))


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 3_000_000])
async def test_bodies_of_any_size(broker: Broker, size: int) -> None:
    """Empty ones, and those split over several frames."""
    publisher = await broker.publisher()
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert await publisher.publish([message(1, body=body)]) == [PublishOutcome.CONFIRMED]
    (got,) = await take(await broker.consumer(topology.INGEST_TASKS, 10), 1)
    assert got.body == body


async def test_prefetch_is_never_exceeded_and_refilled(broker: Broker) -> None:
    """Not more than `prefetch` unacknowledged; an ack brings the next."""
    publisher = await broker.publisher()
    await publisher.publish([message(i) for i in range(10)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 4)
    first = await take(consumer, 4)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consumer.receive(), 0.3)
    await consumer.ack(first[1:3])
    more = await take(consumer, 2)
    assert [int(each.body) for each in first + more] == list(range(6))


async def test_acks_out_of_order_stick(broker: Broker, reopen: Reopen) -> None:
    """Only what was not acknowledged comes again after a close, marked and counted."""
    publisher = await broker.publisher()
    await publisher.publish([message(i) for i in range(6)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    got = await take(consumer, 6)
    await consumer.ack([got[4], got[0], got[2]])
    await consumer.ack([got[1]])
    await broker.close()
    again = await take(await (await reopen()).consumer(topology.INGEST_TASKS, 10), 2)
    assert [(int(each.body), each.redelivered) for each in again] == [(3, True), (5, True)]


async def test_requeue_counts_and_the_limit_ends_in_the_dead_letter_queue(broker: Broker) -> None:
    """Beyond the delivery limit the message is in ingest.dead, unchanged."""
    publisher = await broker.publisher()
    await publisher.publish([message(7, headers={"h": 1})])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    counts: list[int] = []
    while not counts or counts[-1] < topology.DELIVERY_LIMIT:
        (got,) = await take(consumer, 1)
        counts.append(got.deliveries)
        assert got.redelivered == (got.deliveries > 0)
        await consumer.requeue([got])
    # RabbitMQ counts a return of its own when it delivers to a consumer that was cancelled at that moment.
    assert counts[:3] == [0, 1, 2]
    assert len(counts) in (topology.DELIVERY_LIMIT, topology.DELIVERY_LIMIT + 1)
    (dead,) = await take(await broker.consumer(topology.INGEST_DEAD, 10), 1)
    assert (dead.body, dead.message_id, dead.headers["h"]) == (b"7", "m7", 1)
    assert dead.headers["x-first-death-reason"] == "delivery_limit"


async def test_stop_takes_no_more_and_lets_acks_through(broker: Broker, reopen: Reopen) -> None:
    """After stop receive is empty for ever; what was delivered can be acknowledged and does not come again."""
    publisher = await broker.publisher()
    await publisher.publish([message(1)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    got = await take(consumer, 1)
    await consumer.stop()
    await publisher.publish([message(2)])
    assert await consumer.receive() == []
    assert await consumer.receive() == []
    await consumer.ack(got)
    await broker.close()
    (left,) = await take(await (await reopen()).consumer(topology.INGEST_TASKS, 10), 1)
    assert (left.body, left.redelivered) == (b"2", False)


async def test_stop_wakes_a_waiting_receive(broker: Broker) -> None:
    """A worker that waits on an empty queue ends at once."""
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    waiting = asyncio.create_task(consumer.receive())
    await asyncio.sleep(0.05)
    await consumer.stop()
    assert await asyncio.wait_for(waiting, 5) == []


async def test_alive_until_the_consumer_is_closed(broker: Broker) -> None:
    """A delivery of a closed consumer cannot be acknowledged; trying does no harm."""
    publisher = await broker.publisher()
    await publisher.publish([message(1)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    got = await take(consumer, 1)
    assert consumer.alive(got[0])
    await consumer.close()
    assert not consumer.alive(got[0])
    (again,) = await take(await broker.consumer(topology.INGEST_TASKS, 10), 1)
    assert again.redelivered


async def test_competing_consumers_share(broker: Broker) -> None:
    """Two consumers of a queue get each message once."""
    publisher = await broker.publisher()
    one = await broker.consumer(topology.INGEST_TASKS, 5)
    two = await broker.consumer(topology.INGEST_TASKS, 5)
    await publisher.publish([message(i) for i in range(10)])
    first, second = await asyncio.gather(take(one, 5), take(two, 5))
    assert sorted(int(each.body) for each in first + second) == list(range(10))


async def test_concurrent_publishes_get_their_own_outcomes(broker: Broker) -> None:
    """Many callers at once, each with a different mix."""
    publisher = await broker.publisher()

    async def mixed(number: int) -> bool:
        good, bad = message(number), message(number, exchange=topology.EVENTS, routing_key="nobody")
        wanted = [good, bad] if number % 2 else [bad, good, good]
        outcomes = await publisher.publish(wanted)
        return [outcome is PublishOutcome.CONFIRMED for outcome in outcomes] == [each is good for each in wanted]

    assert all(await asyncio.gather(*[mixed(i) for i in range(100)]))


async def test_a_cancelled_publish_may_still_arrive(broker: Broker) -> None:
    """Cancelling the caller harms no later publish."""
    publisher = await broker.publisher()
    task = asyncio.create_task(publisher.publish([message(1)]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert await publisher.publish([message(2)]) == [PublishOutcome.CONFIRMED]


async def test_a_closed_publisher_sends_nothing(broker: Broker) -> None:
    """UNSENT, and not ready."""
    publisher = await broker.publisher()
    await publisher.ready()
    assert await publisher.publish([]) == []
    await publisher.close()
    assert await publisher.publish([message(1)]) == [PublishOutcome.UNSENT]
    with pytest.raises(BrokerUnavailable):
        await publisher.ready()


async def test_a_paused_consumer_holds_nothing(broker: Broker) -> None:
    """Paused: what was delivered goes back and nothing comes; resumed: it all comes again."""
    publisher = await broker.publisher()
    await publisher.publish([message(i) for i in range(3)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    held = await take(consumer, 3)
    await consumer.pause()
    other = await broker.consumer(topology.INGEST_TASKS, 10)
    assert {each.body for each in await take(other, 3)} == {b"0", b"1", b"2"}
    assert not any(consumer.alive(each) for each in held)
    await other.close()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consumer.receive(), 1)
    await consumer.resume()
    again = await take(consumer, 1)
    await consumer.ack(again)
    assert again[0].redelivered


async def test_what_comes_back_again_and_again_is_handed_out_alone(reopen: Reopen) -> None:
    """Consumers die with all they hold: what came back twice comes one at a time, its neighbours all the same."""
    broker = await reopen()
    if not isinstance(broker, RabbitBroker):
        return  # embedded: one process, and nobody to die beside
    publisher = await broker.publisher()
    await publisher.publish([message(i) for i in range(20)])
    for _ in range(2):
        dying = await broker.consumer(topology.INGEST_TASKS, 50)
        await take(dying, 20)
        await dying.close()
    await publisher.publish([message(i) for i in range(20, 60)])
    consumer = await broker.consumer(topology.INGEST_TASKS, 50)
    seen: list[tuple[int, int]] = []
    async with asyncio.timeout(30):
        while len(seen) < 60:
            got = await consumer.receive()
            if any(each.deliveries >= 2 for each in got):
                assert len(got) == 1
            await asyncio.sleep(0.01)  # time for others to come, were they not withheld
            seen += [(int(each.body), each.deliveries) for each in got]
            await consumer.ack(got)
    assert sorted(number for number, _ in seen) == list(range(60))
    assert {number for number, count in seen if count >= 2} == set(range(20))
    # Wide again, once the suspects are through.
    await publisher.publish([message(i) for i in range(60, 70)])
    await take(consumer, 10)
