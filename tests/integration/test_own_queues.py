"""Direct producers with queues of their own, on RabbitMQ: how they get them, use them and lose them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.admission import Admission
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.provisioning import (
    apply_topology,
    bind_producer_queues,
    declare_producer_queues,
    delete_own_queues,
    drain_own_queues,
    existing_queues,
)
from ingest.domain import events, topology
from ingest.domain.customers import Customer
from ingest.domain.errors import BrokerUnavailable, ConfigurationError, InvalidSubmission, Reason
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.messages import Message, PublishOutcome
from ingest.store.sqlite import SqliteStore
from ingest.worker import Worker
from tests.servers import RabbitServer
from tests.support.tasks import TASK

ACME = [queue.name for queue in topology.own_queues("acme")]
SHARED = [topology.INGEST_TASKS, topology.INGEST_BATCHES]


class Producers:
    """A broker, and producers that publish to it."""

    def __init__(self, url: str, management: Management) -> None:
        self.broker = RabbitBroker(url)
        self.management = management
        self._published = 0

    async def publish(self, *customers: str, kind: SubmissionKind = SubmissionKind.TASK) -> list[str]:
        """Publish a submission of each customer; return the ids."""
        publisher = await self.broker.publisher()
        ids = []
        for customer in customers:
            self._published += 1
            key = str(self._published)
            body = json.dumps(TASK if kind is SubmissionKind.TASK else {"tasks": [TASK]}).encode()
            message = Message(
                exchange=topology.SUBMISSIONS, routing_key=f"{kind}.submitted.{customer}", body=body, message_id=key
            )
            assert await publisher.publish([message]) == [PublishOutcome.CONFIRMED]
            ids.append(keyed_id(kind, customer, key))
        await publisher.close()
        return ids

    async def add_queues(self, cust_id: str) -> None:
        await declare_producer_queues(self.broker, self.management, cust_id)
        await bind_producer_queues(self.broker, cust_id)

    async def depths(self, *queues: str) -> list[int | None]:
        """Return the number of messages in queues; None for one that does not exist."""
        depths = (await self.broker.inspect(queues)).queues
        return [None if depth is None else depth[0] for depth in depths.values()]

    async def accepted(self, count: int) -> list[str]:
        """Return the ids of so many accepted tasks. Raises TimeoutError after 30 s."""
        consumer = await self.broker.consumer(topology.CONSENSUS_TASKS, 100)
        ids: list[str] = []
        async with asyncio.timeout(30):
            while len(ids) < count:
                events = await consumer.receive()
                ids += [json.loads(event.body)["data"]["task_id"] for event in events]
                await consumer.ack(events)
        await consumer.close()
        return ids


@pytest.fixture
async def producers(rabbitmq: RabbitServer, rabbitmq_url: str) -> AsyncIterator[Producers]:
    management = Management(rabbitmq.management_url.replace("//", "//guest:guest@"), rabbitmq_url.rpartition("/")[2])
    producers = Producers(rabbitmq_url, management)
    yield producers
    await producers.broker.close()


async def test_topology_of_an_earlier_version_is_changed_without_losing_or_doubling_a_submission(
    producers: Producers,
) -> None:
    await producers.broker.declare()
    await producers.publish("acme")
    assert any("asg.unmatched is missing" in sentence for sentence in producers.management.differences())
    for _ in range(2):
        await apply_topology(producers.broker, producers.management)
        assert producers.management.differences() == []
        await producers.publish("acme", "other")
    assert await producers.depths(*SHARED) == [5, 0]


async def test_process_that_starts_keeps_the_arrangement(producers: Producers) -> None:
    """It declares the topology, and cannot set policies."""
    await apply_topology(producers.broker, producers.management)
    await producers.broker.declare()
    assert producers.management.differences() == []


async def test_own_queues_take_everything_of_their_producer_and_nothing_else(producers: Producers) -> None:
    await apply_topology(producers.broker, producers.management)
    await producers.add_queues("acme")
    await producers.publish("acme", "acme2", "acm", "acme")
    await producers.publish("acme", "other", kind=SubmissionKind.BATCH)
    assert await producers.depths(*ACME, *SHARED) == [2, 1, 2, 1]
    assert producers.management.differences() == []


async def test_report_reaches_the_feedback_queue_of_its_producer_only(producers: Producers) -> None:
    """A customer may be named as a word of another binding."""
    await apply_topology(producers.broker, producers.management)
    for cust_id in ("acme", "webhook"):
        await producers.add_queues(cust_id)
    error = InvalidSubmission(Reason.INVALID, "no")
    reports = [events.rejected(cust_id, "m", 0, error, "0") for cust_id in ("acme", "webhook", "webhook", "none", "")]
    publisher = await producers.broker.publisher()
    assert set(await publisher.publish(reports)) == {PublishOutcome.CONFIRMED}
    assert await producers.depths("feedback.acme", "feedback.webhook", topology.WEBHOOK_DISPATCH) == [1, 2, 0]


async def test_feedback_that_is_not_read_is_bounded(producers: Producers) -> None:
    """The oldest reports are dropped; nothing is refused."""
    await apply_topology(producers.broker, producers.management)
    await producers.add_queues("acme")
    policy = producers.management.policies().of("feedback.acme")
    assert (policy["max-length"], policy["max-length-bytes"]) == (100_000, 32 * 1024 * 1024)
    smaller = {"pattern": "^feedback[.]", "definition": policy | {"max-length": 2}, "apply-to": "queues", "priority": 1}
    producers.management.put(f"policies/{producers.management.vhost}/smaller", smaller)
    error = InvalidSubmission(Reason.INVALID, "no")
    publisher = await producers.broker.publisher()
    for number in range(5):
        report = events.rejected("acme", f"m{number}", 0, error, "0")
        assert await publisher.publish([report]) == [PublishOutcome.CONFIRMED]
    consumer = await producers.broker.consumer("feedback.acme", 10)
    received: list[str] = []
    async with asyncio.timeout(10):
        while len(received) < 2:
            received += [json.loads(report.body)["data"]["message_id"] for report in await consumer.receive()]
    assert received == ["m3", "m4"]


async def test_webhook_queue_loses_the_binding_of_an_earlier_version(producers: Producers) -> None:
    """It would also take the reports to a customer named `webhook`."""
    await apply_topology(producers.broker, producers.management)
    await producers.broker.bind(topology.OBSOLETE_BINDINGS)
    assert producers.management.differences() == [
        "queue webhook.dispatch is still bound to asg.events with #.webhook",
    ]
    await apply_topology(producers.broker, producers.management)
    assert producers.management.differences() == []
    routed = [("task.accepted.sentiment.webhook", 1), ("batch.accepted.webhook", 2), ("submission.rejected.webhook", 2)]
    publisher = await producers.broker.publisher()
    for routing_key, depth in routed:
        await publisher.publish(
            [Message(exchange=topology.EVENTS, routing_key=routing_key, body=b"{}", message_id="m")]
        )
        assert await producers.depths(topology.WEBHOOK_DISPATCH) == [depth]


async def test_own_queues_need_the_topology_of_this_version(producers: Producers) -> None:
    """Otherwise the shared queues would get copies."""
    await producers.broker.declare()
    with pytest.raises(ConfigurationError, match="run `ingest topology apply` first"):
        await producers.add_queues("acme")
    assert await producers.depths(*ACME) == [None, None]


async def test_binding_of_an_earlier_version_is_reported_and_removed(producers: Producers) -> None:
    """A process of an earlier version that starts binds the shared queues again."""
    await apply_topology(producers.broker, producers.management)
    await producers.broker.bind([queue for queue in topology.DEFAULT.not_separated if queue.name in SHARED])
    assert len(producers.management.differences()) == 2
    await apply_topology(producers.broker, producers.management)
    assert producers.management.differences() == []


async def test_worker_consumes_own_queues_until_they_are_removed_and_nothing_is_lost(
    producers: Producers, tmp_path: Path
) -> None:
    await apply_topology(producers.broker, producers.management)
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="acme"))
    worker_broker = RabbitBroker("amqp://" + str(producers.broker._urls[0]).partition("://")[2])
    worker = Worker(
        store=store,
        broker=worker_broker,
        admission=Admission(store),
        trusted_users=frozenset({"guest"}),
        prefetch={topology.INGEST_TASKS: 100, topology.INGEST_BATCHES: 4},
    )
    running = asyncio.create_task(worker.run())
    await producers.add_queues("acme")
    await store.add_producer("acme")
    ids = await producers.publish(*["acme"] * 20)
    assert sorted(await producers.accepted(20)) == sorted(ids)
    ids = await producers.publish(*["acme"] * 20)
    await drain_own_queues(producers.broker, producers.management, "acme", 30)
    ids += await producers.publish("acme")
    await store.remove_producer("acme")
    await delete_own_queues(producers.broker, "acme")
    assert sorted(await producers.accepted(21)) == sorted(ids)
    assert await producers.depths(*ACME) == [None, None]
    assert all(state.connected for state in worker_broker.connections())
    worker.stop()
    await asyncio.wait_for(running, 10)
    await worker_broker.close()
    await store.close()


async def test_own_queues_get_nothing_until_they_are_bound(producers: Producers) -> None:
    """The command may be interrupted before the workers know of them."""
    await apply_topology(producers.broker, producers.management)
    await declare_producer_queues(producers.broker, producers.management, "acme")
    await producers.publish("acme")
    assert await producers.depths(*ACME, topology.INGEST_TASKS) == [0, 0, 1]


async def test_removal_that_was_interrupted_can_be_repeated(producers: Producers) -> None:
    """After one of the two queues was deleted."""
    await apply_topology(producers.broker, producers.management)
    await producers.add_queues("acme")
    await producers.broker.delete(topology.own_queues("acme")[:1])
    assert [queue.name for queue in await existing_queues(producers.broker, topology.own_queues("acme"))] == ACME[1:]
    await drain_own_queues(producers.broker, producers.management, "acme", 30)
    await delete_own_queues(producers.broker, "acme")
    assert await existing_queues(producers.broker, topology.own_queues("acme")) == []


async def test_nothing_is_unbound_while_another_policy_hides_the_alternate_exchange(
    producers: Producers, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """RabbitMQ applies one policy to an exchange."""
    await producers.broker.declare()
    definition = {"alternate-exchange": "amq.fanout"}
    other = {"pattern": "^asg", "apply-to": "exchanges", "priority": 9, "definition": definition}
    rabbitmq.api("PUT", f"policies/{rabbitmq_url.rpartition('/')[2]}/other", other)
    with pytest.raises(ConfigurationError, match="another policy applies"):
        await apply_topology(producers.broker, producers.management)
    await producers.publish("acme")
    assert await producers.depths(topology.INGEST_TASKS) == [1]


async def test_own_queues_with_messages_or_consumers_are_not_deleted(producers: Producers) -> None:
    """Whatever the statistics say, or another operator does at the same time."""
    await apply_topology(producers.broker, producers.management)
    await producers.add_queues("acme")
    await producers.publish("acme")
    with pytest.raises(BrokerUnavailable, match="1 message left in the queues of acme: run `ingest producer add acme`"):
        await delete_own_queues(producers.broker, "acme")
    assert await producers.depths(*ACME) == [1, 0]


async def test_own_queues_that_no_worker_empties_are_kept(producers: Producers) -> None:
    await apply_topology(producers.broker, producers.management)
    await producers.add_queues("acme")
    await producers.publish("acme")
    with pytest.raises(BrokerUnavailable, match="1 message left in the queues of acme"):
        await drain_own_queues(producers.broker, producers.management, "acme", 0)
    assert await producers.depths(*ACME) == [1, 0]
