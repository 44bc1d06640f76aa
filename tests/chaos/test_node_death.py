"""A RabbitMQ node that dies while one of its consumers has deliveries in quarantine."""

import asyncio
from collections.abc import Iterator

import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import PublishOutcome
from tests.chaos.cluster import Cluster, Node
from tests.contract.test_broker import take
from tests.integration.test_rabbitmq import message
from tests.servers.process import Unavailable

COUNT = 6


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    try:
        cluster = Cluster()
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def broker_on(node: Node) -> RabbitBroker:
    return RabbitBroker(f"amqp://guest:guest@127.0.0.1:{node.amqp}/")


@pytest.mark.timeout(240)
async def test_quarantined_deliveries_of_a_dead_node_are_redelivered_to_another_consumer(cluster: Cluster) -> None:
    """A quarantine that cancels its consumer to hold less fails here.

    RabbitMQ 3.10 keeps the unacknowledged deliveries of a cancelled consumer until the queue's leader changes.
    """
    brokers = {node.name: broker_on(node) for node in cluster.nodes}
    await brokers[cluster.nodes[0].name].declare()
    leader = await asyncio.to_thread(cluster.leader, topology.INGEST_TASKS)
    victim = next(node for node in cluster.nodes if node is not leader)
    publisher = await brokers[leader.name].publisher()
    sent = [message(number) for number in range(COUNT)]
    assert set(await publisher.publish(sent)) == {PublishOutcome.CONFIRMED}
    async with asyncio.timeout(150):  # RabbitMQ 4.3 returns the deliveries of an unreachable node after a minute
        consumer = await brokers[victim.name].consumer(topology.INGEST_TASKS, 50)
        for _ in range(2):
            await consumer.requeue(await take(consumer, COUNT))
        (first,) = await consumer.receive()
        assert consumer.held == COUNT
        await asyncio.to_thread(victim.process.kill)
        other_consumer = await brokers[leader.name].consumer(topology.INGEST_TASKS, 50)
        bodies: set[bytes] = set()
        while len(bodies) < COUNT:
            (suspect,) = await other_consumer.receive()
            assert suspect.deliveries > first.deliveries
            bodies.add(suspect.body)
            await other_consumer.ack([suspect])
    for broker in brokers.values():
        await broker.close()
