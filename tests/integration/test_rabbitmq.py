"""What only a real RabbitMQ can do to us: nacks, closes, alarms, crashes, permissions."""

import asyncio
from collections.abc import AsyncIterator

import aio_pika
import aiormq
import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.messages import Message, PublishOutcome
from tests.servers import RabbitServer


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    opened = RabbitBroker(rabbitmq_url, confirm_timeout=2.0)
    await opened.declare()
    yield opened
    await opened.close()


def message(number: int = 0, key: str = "task.submitted.c") -> Message:
    return Message(exchange=topology.SUBMISSIONS, routing_key=key, body=b"%d" % number, message_id=f"m{number}")


async def until_confirmed(broker: RabbitBroker) -> None:
    """Publish until it goes again."""
    publisher = await broker.publisher()
    async with asyncio.timeout(40):
        while await publisher.publish([message(999)]) != [PublishOutcome.CONFIRMED]:
            await asyncio.sleep(0.1)


async def test_a_full_queue_nacks(broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """Beyond max-length with reject-publish the outcome is NACKED, and nothing is dropped."""
    policy = {"pattern": "ingest.tasks", "definition": {"max-length": 5, "overflow": "reject-publish"}}
    rabbitmq.api("PUT", f"policies/{rabbitmq_url.rpartition('/')[2]}/full", policy | {"apply-to": "queues"})
    publisher = await broker.publisher()
    outcomes: list[PublishOutcome] = []
    async with asyncio.timeout(20):
        while PublishOutcome.NACKED not in outcomes:
            outcomes += await publisher.publish([message(len(outcomes))])
    assert set(outcomes) == {PublishOutcome.CONFIRMED, PublishOutcome.NACKED}


async def test_a_closed_channel_is_opened_again(broker: RabbitBroker) -> None:
    """A publish to an exchange that does not exist closes the channel: UNKNOWN, then all is well again."""
    publisher = await broker.publisher()
    lost = Message(exchange="no.such.exchange", routing_key="x", body=b"", message_id="m")
    assert await publisher.publish([message(1), lost]) in (
        [PublishOutcome.CONFIRMED, PublishOutcome.UNKNOWN],
        [PublishOutcome.UNKNOWN, PublishOutcome.UNKNOWN],
    )
    async with asyncio.timeout(10):
        while await publisher.publish([message(2)]) != [PublishOutcome.CONFIRMED]:
            await asyncio.sleep(0.05)


async def test_closed_connections_come_back(broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """An operator closes them all: the consumer consumes again, old deliveries are dead, new ones can be acked."""
    publisher = await broker.publisher()
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    await publisher.publish([message(1)])
    (old,) = await asyncio.wait_for(consumer.receive(), 10)
    vhost = rabbitmq_url.rpartition("/")[2]
    async with asyncio.timeout(30):
        while consumer.alive(old):
            for each in rabbitmq.api("GET", f"vhosts/{vhost}/connections"):
                rabbitmq.close_connection(each["name"])
            await asyncio.sleep(0.2)
    await consumer.ack([old])
    (again,) = await asyncio.wait_for(consumer.receive(), 20)
    assert (again.body, again.redelivered) == (b"1", True)
    await consumer.ack([again])
    await until_confirmed(broker)
    states = {state.name: state for state in broker.connections()}
    assert states.keys() >= {"publish", "consume ingest.tasks"}
    assert all(state.connected for state in states.values())
    assert states["consume ingest.tasks"].reconnects >= 1


async def test_publishes_are_spread(broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """Of two calls at once each has a connection; while one is lost, all go out on the other, which is ready enough."""
    publisher = await broker.publisher(connections=2)
    vhost = rabbitmq_url.rpartition("/")[2]
    async with asyncio.timeout(30):
        while len(used := await publishing_connections(rabbitmq, vhost)) < 2:
            both = await asyncio.gather(*[publisher.publish([message(n) for n in range(50)]) for _ in range(2)])
            assert both == [[PublishOutcome.CONFIRMED] * 50] * 2
    (first,) = [name for name, purpose in used.items() if purpose.endswith(" publish")]
    rabbitmq.close_connection(first)
    outcomes = set()
    async with asyncio.timeout(20):
        while (state := broker.connections()[0]).reconnects == 0 or not state.connected:
            outcomes.update(await publisher.publish([message(1)]))
            await publisher.ready()
    assert outcomes <= {PublishOutcome.CONFIRMED, PublishOutcome.UNKNOWN}, "what is not sent waits for nobody"


async def publishing_connections(rabbitmq: RabbitServer, vhost: str) -> dict[str, str]:
    """Connections of the virtual host that have published: RabbitMQ's name of each, and the client's."""
    await asyncio.sleep(0.2)
    channels = await asyncio.to_thread(rabbitmq.api, "GET", f"vhosts/{vhost}/channels")
    used = {c["connection_details"]["name"] for c in channels if c.get("message_stats", {}).get("publish")}
    connections = await asyncio.to_thread(rabbitmq.api, "GET", f"vhosts/{vhost}/connections")
    return {c["name"]: c["client_properties"]["connection_name"] for c in connections if c["name"] in used}


async def test_a_memory_alarm_blocks(broker: RabbitBroker, rabbitmq: RabbitServer) -> None:
    """Blocked: nothing is sent and nothing hangs; the alarm over, it goes on. Consumers never notice."""
    if not rabbitmq.controllable:
        pytest.skip("the RabbitMQ given is not ours to disturb")
    publisher = await broker.publisher()
    await rabbitmq_eval(rabbitmq, "vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        outcomes = set()
        async with asyncio.timeout(20):
            while PublishOutcome.UNSENT not in outcomes:
                outcomes.update(await publisher.publish([message(1)]))
        with pytest.raises(BrokerUnavailable, match="blocks publishers"):
            await publisher.ready()
        await asyncio.sleep(0.2)
        assert broker.connections()[0].blocked_seconds > 0.2
    finally:
        await rabbitmq_eval(rabbitmq, "vm_memory_monitor:set_vm_memory_high_watermark(0.6).")
    async with asyncio.timeout(20):
        while await publisher.publish([message(2)]) != [PublishOutcome.CONFIRMED]:
            await asyncio.sleep(0.1)
    (after,) = broker.connections()
    await asyncio.sleep(0.1)
    assert broker.connections() == [after], "blocked for no longer than that"
    assert (after.name, after.connected, after.reconnects) == ("publish", True, 0)


async def test_a_paused_broker_makes_unknown_in_time(broker: RabbitBroker, rabbitmq: RabbitServer) -> None:
    """No answer: UNKNOWN after the timeout, not a hang; and not ready. All on one connection, which lives on."""
    if not rabbitmq.controllable:
        pytest.skip("the RabbitMQ given is not ours to disturb")
    publisher = await broker.publisher()
    rabbitmq.pause()
    try:
        assert await asyncio.wait_for(publisher.publish([message(1)]), 5) == [PublishOutcome.UNKNOWN]
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match="does not answer"):
                await asyncio.wait_for(publisher.ready(), 3)
    finally:
        rabbitmq.resume()
    assert await asyncio.wait_for(publisher.publish([message(2)]), 10) == [PublishOutcome.CONFIRMED]
    await publisher.ready()
    assert [state.reconnects for state in broker.connections()] == [0]


async def test_a_killed_broker_loses_nothing_confirmed(broker: RabbitBroker, rabbitmq: RabbitServer) -> None:
    """SIGKILL and a restart: publisher and consumer come back by themselves, and what was confirmed is there."""
    if not rabbitmq.controllable:
        pytest.skip("the RabbitMQ given is not ours to disturb")
    publisher = await broker.publisher()
    assert set(await publisher.publish([message(i) for i in range(100)])) == {PublishOutcome.CONFIRMED}
    await asyncio.to_thread(rabbitmq.kill)
    assert (await publisher.publish([message(1)]))[0] in (PublishOutcome.UNSENT, PublishOutcome.UNKNOWN)
    await asyncio.to_thread(rabbitmq.start)
    await until_confirmed(broker)
    consumer = await broker.consumer(topology.INGEST_TASKS, 500)
    got: set[bytes] = set()
    async with asyncio.timeout(30):
        while len(got) < 101:
            some = await consumer.receive()
            got |= {each.body for each in some}
            await consumer.ack(some)


async def test_a_deleted_queue_is_consumed_again_once_it_is_back(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """The broker cancels the consumer; it is not re-created behind the operator's back."""
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    rabbitmq.api("DELETE", f"queues/{rabbitmq_url.rpartition('/')[2]}/{topology.INGEST_TASKS}")
    await asyncio.sleep(0.5)
    publisher = await broker.publisher()
    assert await publisher.publish([message(1)]) == [PublishOutcome.UNROUTABLE]
    await broker.declare()
    assert await publisher.publish([message(2)]) == [PublishOutcome.CONFIRMED]
    (got,) = await asyncio.wait_for(consumer.receive(), 20)
    assert got.body == b"2"


async def test_a_queue_of_another_kind_is_told(rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """What exists differs: said, not hidden."""
    vhost = rabbitmq_url.rpartition("/")[2]
    rabbitmq.api("PUT", f"queues/{vhost}/{topology.INGEST_TASKS}", {"durable": True, "arguments": {}})
    broker = RabbitBroker(rabbitmq_url)
    with pytest.raises(ConfigurationError, match=r"ingest\.tasks exists on RabbitMQ with other arguments"):
        await broker.declare()


async def test_tenants_are_held_by_the_broker(rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """With the permissions of deploy/README.md a producer publishes under its own name only."""
    vhost = rabbitmq_url.rpartition("/")[2]
    rabbitmq.api("PUT", "users/acme", {"password": "pw", "tags": ""})
    permissions = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
    rabbitmq.api("PUT", f"permissions/{vhost}/acme", permissions)
    topic = {"exchange": topology.SUBMISSIONS, "write": r"^(task|batch)\.submitted\.{username}$", "read": "^$"}
    rabbitmq.api("PUT", f"topic-permissions/{vhost}/acme", topic)
    service = RabbitBroker(rabbitmq_url)
    await service.declare()
    producer = RabbitBroker(rabbitmq_url.replace("guest:guest", "acme:pw"), confirm_timeout=2.0)
    publisher = await producer.publisher()
    assert await publisher.publish([message(1, "task.submitted.acme")]) == [PublishOutcome.CONFIRMED]
    assert await publisher.publish([message(1, "task.submitted.other")]) == [PublishOutcome.UNKNOWN]
    consumer = await service.consumer(topology.INGEST_TASKS, 10)
    (got,) = await asyncio.wait_for(consumer.receive(), 10)
    assert got.user_id == "acme"
    await producer.close()
    await service.close()


@pytest.mark.parametrize("url", ["amqp://guest:wrong@{}/", "amqp://guest:guest@127.0.0.1:1/"])
async def test_what_cannot_connect_says_so_without_the_password(rabbitmq_url: str, url: str) -> None:
    """Wrong password, nobody there: BrokerUnavailable, no publish, no hang."""
    broker = RabbitBroker(url.format(rabbitmq_url.split("@")[1].partition("/")[0]))
    publisher = await asyncio.wait_for(broker.publisher(), 15)
    with pytest.raises(BrokerUnavailable) as caught:
        await publisher.ready()
    assert "wrong" not in str(caught.value)
    assert await publisher.publish([message(1)]) == [PublishOutcome.UNSENT]
    await broker.close()


async def test_further_hosts_are_tried(rabbitmq_url: str) -> None:
    """The first host is down, the second takes it."""
    broker = RabbitBroker(rabbitmq_url.replace("@", "@127.0.0.1:1,"))
    await broker.declare()
    await until_confirmed(broker)
    await broker.close()


async def rabbitmq_eval(server: RabbitServer, expression: str) -> None:
    """Run Erlang on the node."""
    await asyncio.to_thread(server.ctl, "eval", expression)


async def test_a_full_queue_that_is_full_no_more(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """RabbitMQ 3.10 goes on to nack on a channel whose queue has lost its limit: another channel is opened."""
    vhost = rabbitmq_url.rpartition("/")[2]
    policy = {"pattern": "ingest.tasks", "definition": {"max-length": 5, "overflow": "reject-publish"}}
    rabbitmq.api("PUT", f"policies/{vhost}/full", policy | {"apply-to": "queues"})
    publisher = await broker.publisher()
    async with asyncio.timeout(20):
        while await publisher.publish([message(1)]) != [PublishOutcome.NACKED]:
            await asyncio.sleep(0.01)
    rabbitmq.api("DELETE", f"policies/{vhost}/full")
    async with asyncio.timeout(40):
        while await publisher.publish([message(2)]) != [PublishOutcome.CONFIRMED]:
            await asyncio.sleep(0.5)


async def test_messages_have_a_greatest_size(rabbitmq_url: str) -> None:
    """With deploy/'s configuration the broker refuses what is above 16 MiB, and closes the producer's channel."""
    connection = await aio_pika.connect(rabbitmq_url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("large", aio_pika.ExchangeType.TOPIC)
        largest = 16 * 1024 * 1024
        await asyncio.wait_for(exchange.publish(aio_pika.Message(bytes(largest)), "x", mandatory=False), 20)
        message = aio_pika.Message(bytes(largest + 1))
        with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed, match="larger than configured max size"):
            await asyncio.wait_for(exchange.publish(message, "x", mandatory=False), 20)
