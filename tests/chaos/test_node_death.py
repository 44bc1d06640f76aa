"""A RabbitMQ node that dies while a consumer on it takes suspects one by one."""

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
    except Unavailable as why:
        pytest.skip(str(why))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def on(node: Node) -> RabbitBroker:
    return RabbitBroker(f"amqp://guest:guest@127.0.0.1:{node.amqp}/")


@pytest.mark.timeout(240)
async def test_it_leaves_nothing_unacknowledged(cluster: Cluster) -> None:
    """All that the consumer held comes again elsewhere at once: what a consumer that was cancelled to hold less had not
    acknowledged would stay with RabbitMQ 3.10 until the queue's leader changes."""
    brokers = {node.name: on(node) for node in cluster.nodes}
    await brokers[cluster.nodes[0].name].declare()
    leader = await asyncio.to_thread(cluster.leader, topology.INGEST_TASKS)
    victim = next(node for node in cluster.nodes if node is not leader)
    publisher = await brokers[leader.name].publisher()
    sent = [message(number) for number in range(COUNT)]
    assert set(await publisher.publish(sent)) == {PublishOutcome.CONFIRMED}
    async with asyncio.timeout(60):
        consumer = await brokers[victim.name].consumer(topology.INGEST_TASKS, 50)
        for _ in range(2):
            await consumer.requeue(await take(consumer, COUNT))
        (first,) = await consumer.receive()
        assert consumer.held == COUNT
        await asyncio.to_thread(victim.process.kill)
        other = await brokers[leader.name].consumer(topology.INGEST_TASKS, 50)
        seen: set[bytes] = set()
        while len(seen) < COUNT:
            (alone,) = await other.receive()
            assert alone.deliveries > first.deliveries
            seen.add(alone.body)
            await other.ack([alone])
    for broker in brokers.values():
        await broker.close()
