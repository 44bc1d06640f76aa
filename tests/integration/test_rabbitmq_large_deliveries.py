"""The consumers of a process hold at most 8 MiB, whatever their prefetch is; tested with messages of 3 MiB.

Over TCP and over TLS, whose transport stops reading in another way.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import trustme

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Consumer
from tests.servers import RabbitServer, Unavailable
from tests.servers.process import free_ports

BODY = b"x" * (3 * 1024 * 1024)


class Address(NamedTuple):
    """A RabbitMQ and how to reach it."""

    server: RabbitServer
    url: str
    context: ssl.SSLContext | None


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A RabbitMQ with a TLS port."""
    authority, (port,) = trustme.CA(), free_ports(1)
    file = tmp_path_factory.mktemp("certificates") / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    try:
        server = RabbitServer(
            f"listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.certfile = {file}\nssl_options.keyfile = {file}\n"
        )
    except Unavailable as error:
        pytest.skip(f"RabbitMQ: {error}")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    yield Address(server, f"amqps://guest:guest@127.0.0.1:{port}", context)
    server.stop()


@pytest.fixture(params=["TCP", "TLS"])
def address(request: pytest.FixtureRequest) -> Iterator[Address]:
    """The address of a new virtual host."""
    if request.param == "TLS":
        tls: Address = request.getfixturevalue("tls")
        server, base, context = tls
    else:
        server, context = request.getfixturevalue("rabbitmq"), None
        base = server.url.rstrip("/")
    url = server.new_vhost()
    yield Address(server, base + urlsplit(url).path, context)
    server.drop_vhost(url)


@pytest.fixture
async def broker(address: Address) -> AsyncIterator[RabbitBroker]:
    """The heartbeat fails after 6 s of silence."""
    broker = RabbitBroker(address.url, heartbeat=1, confirm_timeout=20, ssl_context=address.context)
    await broker.declare()
    yield broker
    await broker.close()


async def publish(broker: RabbitBroker, count: int, kind: str = "task", body: bytes = BODY) -> None:
    publisher = await broker.publisher()
    for number in range(count):
        message = Message(
            exchange=topology.SUBMISSIONS, routing_key=f"{kind}.submitted.c", body=body, message_id=f"m{number}"
        )
        assert await publisher.publish([message]) == [PublishOutcome.CONFIRMED]
    await publisher.close()


async def receive_until_quiet(consumer: Consumer, seconds: float = 1.5) -> list[Delivery]:
    """Receive until nothing arrives for so long, or the consumer has stopped."""
    deliveries: list[Delivery] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds) as quiet:
            while received := await consumer.receive():
                deliveries += received
                quiet.reschedule(asyncio.get_running_loop().time() + seconds)
    return deliveries


def names(deliveries: list[Delivery]) -> list[str | None]:
    return [delivery.message_id for delivery in deliveries]


async def test_deliveries_beyond_the_limit_of_bytes_arrive_after_acks(broker: RabbitBroker) -> None:
    """Neither the broker nor the client closes the connection, however long that takes."""
    await publish(broker, 6)
    consumer = await broker.consumer(topology.INGEST_TASKS, 100)
    first = await receive_until_quiet(consumer, 8)
    assert names(first) == ["m0", "m1"]
    await consumer.ack(first[:1])
    second = await receive_until_quiet(consumer)
    assert names(second) == ["m2"]
    await consumer.ack([*first[1:], *second])
    third = await receive_until_quiet(consumer)
    assert names(third) == ["m3", "m4"]
    await consumer.ack(third)
    assert names(await receive_until_quiet(consumer)) == ["m5"]
    assert [state.reconnects for state in broker.connections() if state.name.startswith("consume")] == [0]


async def test_deliveries_that_are_set_apart_do_not_count(broker: RabbitBroker) -> None:
    """The extra prefetch is raised as soon as the broker's answer can be read."""
    await publish(broker, 6)
    consumer = await broker.consumer(topology.INGEST_TASKS, 4)
    first = await receive_until_quiet(consumer)
    await consumer.set_apart(first[:1], 1)
    assert names(await receive_until_quiet(consumer)) == ["m2"]
    await consumer.set_apart(first, 2)
    assert names(await receive_until_quiet(consumer)) == ["m3"]
    assert consumer.held == 4


async def test_consumer_that_does_not_read_can_stop_and_close(broker: RabbitBroker) -> None:
    """What it holds can be finished; what it has not read returns to the queue."""
    await publish(broker, 4)
    consumer = await broker.consumer(topology.INGEST_TASKS, 4)
    first = await receive_until_quiet(consumer)
    stopping = asyncio.create_task(consumer.stop())
    await consumer.ack(first)
    await stopping
    assert names(await receive_until_quiet(consumer)) == ["m2", "m3"]
    await consumer.close()
    other = await broker.consumer(topology.INGEST_TASKS, 4)
    assert len(await receive_until_quiet(other)) == 2
    async with asyncio.timeout(5):
        await other.close()


async def test_consumer_that_does_not_read_closes_its_connection_at_once(broker: RabbitBroker) -> None:
    await publish(broker, 6)
    consumer = await broker.consumer(topology.INGEST_TASKS, 100)
    assert len(await receive_until_quiet(consumer)) == 2
    async with asyncio.timeout(5):
        await consumer.close()
    other = await broker.consumer(topology.INGEST_TASKS, 100)
    assert names(await receive_until_quiet(other)) == ["m0", "m1"]


async def test_consumer_that_does_not_read_can_pause_and_resume(broker: RabbitBroker) -> None:
    """In an outage: everything returns to the queue, and the first delivery afterwards comes alone."""
    await publish(broker, 5)
    consumer = await broker.consumer(topology.INGEST_TASKS, 100)
    assert len(await receive_until_quiet(consumer)) == 2
    await consumer.pause()
    assert await receive_until_quiet(consumer) == []
    await consumer.resume()
    (alone,) = await receive_until_quiet(consumer)
    await consumer.ack([alone])
    rest = await receive_until_quiet(consumer)
    assert len(rest) == 2
    await consumer.ack(rest)
    last = await receive_until_quiet(consumer)
    await consumer.ack(last)
    assert sorted(str(name) for name in names([alone, *rest, *last])) == ["m0", "m1", "m2", "m3", "m4"]


async def test_consumers_share_the_memory_and_take_turns(broker: RabbitBroker) -> None:
    await publish(broker, 3)
    await publish(broker, 3, kind="batch")
    consumers = [await broker.consumer(queue, 100) for queue in (topology.INGEST_TASKS, topology.INGEST_BATCHES)]
    arrived: list[list[str | None]] = [[], []]
    while len(arrived[0]) + len(arrived[1]) < 6:
        held = await asyncio.gather(*[receive_until_quiet(consumer) for consumer in consumers])
        assert 0 < len(held[0]) + len(held[1]) <= 2
        for consumer, deliveries, one in zip(consumers, held, arrived, strict=True):
            one += names(deliveries)
            await consumer.ack(deliveries)
        assert abs(len(arrived[0]) - len(arrived[1])) <= 2
    assert arrived == [["m0", "m1", "m2"]] * 2


async def test_small_submissions_arrive_while_large_ones_use_their_memory(broker: RabbitBroker) -> None:
    await publish(broker, 3, kind="batch")
    await publish(broker, 5, body=b"small")
    batches = await broker.consumer(topology.INGEST_BATCHES, 100)
    assert len(await receive_until_quiet(batches)) == 2
    tasks = await broker.consumer(topology.INGEST_TASKS, 100)
    assert names(await receive_until_quiet(tasks)) == ["m0", "m1", "m2", "m3", "m4"]


async def test_memory_of_a_lost_connection_is_free_again(broker: RabbitBroker) -> None:
    await publish(broker, 3)
    await publish(broker, 1, kind="batch")
    tasks, batches = [await broker.consumer(queue, 100) for queue in (topology.INGEST_TASKS, topology.INGEST_BATCHES)]
    await receive_until_quiet(tasks)
    await tasks.pause()
    assert names(await receive_until_quiet(batches)) == ["m0"]
