"""Behaviour that only a real RabbitMQ shows: nacks, closed connections, alarms, crashes, permissions."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from structlog.testing import capture_logs

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.publisher import RabbitPublisher
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.messages import Message, PublishOutcome
from tests.servers import RabbitServer


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    broker = RabbitBroker(rabbitmq_url, confirm_timeout=2.0)
    await broker.declare()
    yield broker
    await broker.close()


def message(number: int = 0, key: str = "task.submitted.c") -> Message:
    return Message(exchange=topology.SUBMISSIONS, routing_key=key, body=b"%d" % number, message_id=f"m{number}")


def vhost_of(url: str) -> str:
    return url.rpartition("/")[2]


def skip_unless_controllable(rabbitmq: RabbitServer) -> None:
    if not rabbitmq.controllable:
        pytest.skip("these tests may not disturb the given RabbitMQ")


async def until_confirmed(broker: RabbitBroker) -> None:
    """Publish until a message is confirmed. Raises TimeoutError after 40 s."""
    publisher = await broker.publisher()
    async with asyncio.timeout(40):
        while await publisher.publish([message(999)]) != [PublishOutcome.CONFIRMED]:
            await asyncio.sleep(0.1)


async def test_publish_to_full_queue_is_nacked(broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """The queue has a max-length and overflow reject-publish."""
    policy = {"pattern": "ingest.tasks", "definition": {"max-length": 5, "overflow": "reject-publish"}}
    rabbitmq.api("PUT", f"policies/{vhost_of(rabbitmq_url)}/full", policy | {"apply-to": "queues"})
    publisher = await broker.publisher()
    outcomes: list[PublishOutcome] = []
    async with asyncio.timeout(20):
        while PublishOutcome.NACKED not in outcomes:
            outcomes += await publisher.publish([message(len(outcomes))])
    assert set(outcomes) == {PublishOutcome.CONFIRMED, PublishOutcome.NACKED}


async def test_channel_closed_by_a_publish_to_a_missing_exchange_is_opened_again(broker: RabbitBroker) -> None:
    """The outcome is UNKNOWN; later publishes are confirmed."""
    publisher = await broker.publisher()
    lost = Message(exchange="no.such.exchange", routing_key="x", body=b"", message_id="m")
    assert await publisher.publish([message(1), lost]) in (
        [PublishOutcome.CONFIRMED, PublishOutcome.UNKNOWN],
        [PublishOutcome.UNKNOWN, PublishOutcome.UNKNOWN],
    )
    async with asyncio.timeout(10):
        while await publisher.publish([message(2)]) != [PublishOutcome.CONFIRMED]:
            await asyncio.sleep(0.05)


async def test_publisher_and_consumer_reconnect_after_an_operator_closed_their_connections(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """Deliveries of the old connection are not alive and are redelivered; those of the new one can be acked."""
    publisher = await broker.publisher()
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    await publisher.publish([message(1)])
    (old,) = await asyncio.wait_for(consumer.receive(), 10)
    async with asyncio.timeout(30):
        while consumer.alive(old):
            for connection in rabbitmq.api("GET", f"vhosts/{vhost_of(rabbitmq_url)}/connections"):
                rabbitmq.close_connection(connection["name"])
            await asyncio.sleep(0.2)
    await consumer.ack([old])
    (redelivery,) = await asyncio.wait_for(consumer.receive(), 20)
    assert (redelivery.body, redelivery.redelivered) == (b"1", True)
    await consumer.ack([redelivery])
    await until_confirmed(broker)
    states = {state.name: state for state in broker.connections()}
    assert states.keys() >= {"publish", "consume ingest.tasks"}
    assert all(state.connected for state in states.values())
    assert states["consume ingest.tasks"].reconnects >= 1


async def test_concurrent_publishes_use_two_connections_and_one_is_enough(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """While the first connection is lost, the publisher is ready and publishes over the second one."""
    publisher = await broker.publisher(connections=2)
    vhost = vhost_of(rabbitmq_url)
    async with asyncio.timeout(30):
        while len(used := await publishing_connections(rabbitmq, vhost)) < 2:
            results = await asyncio.gather(*[publisher.publish([message(n) for n in range(50)]) for _ in range(2)])
            assert results == [[PublishOutcome.CONFIRMED] * 50] * 2
    (first,) = [name for name, purpose in used.items() if purpose.endswith(" publish")]
    rabbitmq.close_connection(first)
    outcomes = set()
    async with asyncio.timeout(20):
        while (state := broker.connections()[0]).reconnects == 0 or not state.connected:
            outcomes.update(await publisher.publish([message(1)]))
            await publisher.ready()
    assert outcomes <= {PublishOutcome.CONFIRMED, PublishOutcome.UNKNOWN}, (
        "a publish was UNSENT although the second connection was available"
    )


async def publishing_connections(rabbitmq: RabbitServer, vhost: str) -> dict[str, str]:
    """Return the connections of the virtual host that have published: RabbitMQ's name to the client's name."""
    await asyncio.sleep(0.2)
    channels = await asyncio.to_thread(rabbitmq.api, "GET", f"vhosts/{vhost}/channels")
    used = {
        channel["connection_details"]["name"]
        for channel in channels
        # Both are an empty list while the statistics are incomplete.
        if channel.get("connection_details")
        and channel.get("message_stats")
        and channel["message_stats"].get("publish")
    }
    connections = await asyncio.to_thread(rabbitmq.api, "GET", f"vhosts/{vhost}/connections")
    return {
        connection["name"]: connection["client_properties"]["connection_name"]
        for connection in connections
        if connection["name"] in used
    }


async def test_publishes_are_unsent_during_a_memory_alarm_and_confirmed_after_it(
    broker: RabbitBroker, rabbitmq: RabbitServer
) -> None:
    """Publishes do not hang, the connection is kept, and the blocked time is counted."""
    skip_unless_controllable(rabbitmq)
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
    assert broker.connections() == [after], "blocked_seconds grows after the alarm"
    assert (after.name, after.connected, after.reconnects) == ("publish", True, 0)


async def test_publish_is_unknown_after_its_timeout_while_the_broker_is_paused(
    broker: RabbitBroker, rabbitmq: RabbitServer
) -> None:
    """The publisher is not ready then. It keeps its connection, which works again after the pause."""
    skip_unless_controllable(rabbitmq)
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


async def test_publishes_to_a_broker_that_does_not_read_are_unsent_beyond_a_buffer(
    broker: RabbitBroker, rabbitmq: RabbitServer
) -> None:
    """Otherwise the process grows as long as clients submit. What was not written is certainly not taken."""
    skip_unless_controllable(rabbitmq)
    publisher = await broker.publisher()
    large = msgspec.structs.replace(message(1), body=b"x" * 1_000_000)
    rabbitmq.pause()
    try:
        for _ in range(3):
            calls = [publisher.publish([large] * 10) for _ in range(4)]
            outcomes = [outcome for call in await asyncio.gather(*calls) for outcome in call]
        assert set(outcomes) == {PublishOutcome.UNSENT}
        assert isinstance(publisher, RabbitPublisher)
        assert publisher.queued < 20_000_000
    finally:
        rabbitmq.resume()
    await until_confirmed(broker)


async def test_confirmed_messages_survive_a_kill_of_the_broker(broker: RabbitBroker, rabbitmq: RabbitServer) -> None:
    """The publisher reconnects by itself after the restart."""
    skip_unless_controllable(rabbitmq)
    publisher = await broker.publisher()
    assert set(await publisher.publish([message(i) for i in range(100)])) == {PublishOutcome.CONFIRMED}
    await asyncio.to_thread(rabbitmq.kill)
    assert (await publisher.publish([message(1)]))[0] in (PublishOutcome.UNSENT, PublishOutcome.UNKNOWN)
    await asyncio.to_thread(rabbitmq.start)
    await until_confirmed(broker)
    consumer = await broker.consumer(topology.INGEST_TASKS, 500)
    confirmed = {b"%d" % number for number in [*range(100), 999]}
    received: set[bytes] = set()
    async with asyncio.timeout(30):
        while not confirmed <= received:
            deliveries = await consumer.receive()
            received |= {delivery.body for delivery in deliveries}
            await consumer.ack(deliveries)


async def test_consumer_does_not_create_a_deleted_queue_and_consumes_it_once_it_exists_again(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    consumer = await broker.consumer(topology.INGEST_TASKS, 10)
    with capture_logs() as logs:
        rabbitmq.api("DELETE", f"queues/{vhost_of(rabbitmq_url)}/{topology.INGEST_TASKS}")
        await asyncio.sleep(0.5)
    assert [log["queue"] for log in logs if log["event"] == "consumer_cancelled"] == [topology.INGEST_TASKS]
    publisher = await broker.publisher()
    assert await publisher.publish([message(1)]) == [PublishOutcome.UNROUTABLE]
    await broker.declare()
    assert await publisher.publish([message(2)]) == [PublishOutcome.CONFIRMED]
    (delivery,) = await asyncio.wait_for(consumer.receive(), 20)
    assert delivery.body == b"2"


async def test_declare_raises_configuration_error_if_a_queue_has_other_arguments(
    rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    rabbitmq.api("PUT", f"queues/{vhost_of(rabbitmq_url)}/{topology.INGEST_TASKS}", {"durable": True, "arguments": {}})
    broker = RabbitBroker(rabbitmq_url)
    with pytest.raises(ConfigurationError, match=r"exists on RabbitMQ with other arguments: .*ingest\.tasks"):
        await broker.declare()


async def test_broker_lets_a_direct_producer_publish_for_its_own_customer_only(
    rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """The user has permissions and topic permissions as operators must set them."""
    service = RabbitBroker(rabbitmq_url)
    await service.declare()  # RabbitMQ 4.3 takes topic permissions only for exchanges that exist
    vhost = vhost_of(rabbitmq_url)
    rabbitmq.api("PUT", "users/acme", {"password": "pw", "tags": ""})
    permissions = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
    rabbitmq.api("PUT", f"permissions/{vhost}/acme", permissions)
    topic = {"exchange": topology.SUBMISSIONS, "write": r"^(task|batch)\.submitted\.{username}\z", "read": "^$"}
    rabbitmq.api("PUT", f"topic-permissions/{vhost}/acme", topic)
    producer = RabbitBroker(rabbitmq_url.replace("guest:guest", "acme:pw"), confirm_timeout=2.0)
    publisher = await producer.publisher()
    assert await publisher.publish([message(1, "task.submitted.acme")]) == [PublishOutcome.CONFIRMED]
    assert await publisher.publish([message(1, "task.submitted.other")]) == [PublishOutcome.UNKNOWN]
    consumer = await service.consumer(topology.INGEST_TASKS, 10)
    (delivery,) = await asyncio.wait_for(consumer.receive(), 10)
    assert (delivery.user_id, delivery.routing_key) == ("acme", "task.submitted.acme")
    await producer.close()
    await service.close()


async def test_missing_virtual_host_is_named_with_what_to_do(rabbitmq: RabbitServer) -> None:
    broker = RabbitBroker(f"{rabbitmq.url.rstrip('/')}/no%2Fsuch")
    with pytest.raises(BrokerUnavailable, match=r"virtual host no/such .* user guest .*rabbitmqctl add_vhost"):
        await broker.inspect()
    publisher = await broker.publisher()
    with pytest.raises(BrokerUnavailable, match="virtual host no/such"):
        await publisher.ready()
    await broker.close()


@pytest.mark.parametrize("url", ["amqp://guest:wrong@{}/", "amqp://guest:guest@127.0.0.1:1/"])
async def test_publisher_that_cannot_connect_is_not_ready_and_its_error_hides_the_password(
    rabbitmq_url: str, url: str
) -> None:
    """The password is wrong, or the port is closed."""
    broker = RabbitBroker(url.format(rabbitmq_url.split("@")[1].partition("/")[0]))
    publisher = await asyncio.wait_for(broker.publisher(), 15)
    with pytest.raises(BrokerUnavailable) as error:
        await publisher.ready()
    assert "wrong" not in str(error.value)
    assert await publisher.publish([message(1)]) == [PublishOutcome.UNSENT]
    await broker.close()


async def test_second_host_of_the_url_is_used_if_the_first_is_down(rabbitmq_url: str) -> None:
    broker = RabbitBroker(rabbitmq_url.replace("@", "@127.0.0.1:1,"))
    await broker.declare()
    await until_confirmed(broker)
    await broker.close()


async def rabbitmq_eval(server: RabbitServer, expression: str) -> None:
    """Evaluate an Erlang expression on the node."""
    await asyncio.to_thread(server.ctl, "eval", expression)


async def test_publishes_are_confirmed_again_after_a_full_queue_has_lost_its_limit(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """RabbitMQ 3.10 keeps nacking on a channel that was open before the limit was removed, so another one is opened."""
    vhost = vhost_of(rabbitmq_url)
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
