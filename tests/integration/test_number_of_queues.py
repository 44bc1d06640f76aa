"""The number of queues of the shim is changed on RabbitMQ: nothing is lost, and what is not needed is removed."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.admission import Admission
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.provisioning import apply_topology, remove_surplus
from ingest.broker.rabbitmq.status import rate
from ingest.domain.admitted import Admitted, to_message
from ingest.domain.customers import Customer
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.messages import PublishOutcome
from ingest.domain.submissions import task_submission
from ingest.domain.topology import CONSENSUS_TASKS, DEFAULT, Layout, admitted_queue, route_to
from ingest.store.sqlite import SqliteStore
from ingest.worker import Worker
from tests.servers import RabbitServer
from tests.support.eventually import eventually
from tests.support.tasks import TASK

LARGER = Layout(http=4, heavy=2)
SURPLUS = ["ingest.http.2", "ingest.http.3", "ingest.heavy.1"]


class Harness:
    """RabbitMQ with the larger layout, and one submission in each numbered queue."""

    def __init__(self, url: str, server: RabbitServer) -> None:
        self.url = url
        self._management_url = server.management_url.replace("//", "//guest:guest@")
        self._brokers: list[RabbitBroker] = []

    def broker(self, layout: Layout) -> RabbitBroker:
        self._brokers.append(RabbitBroker(self.url, layout=layout))
        return self._brokers[-1]

    def management(self, layout: Layout) -> Management:
        return Management(self._management_url, self.url.rpartition("/")[2], layout=layout)

    async def submit(self, layout: Layout) -> set[str]:
        """Publish a submission to each numbered queue; return the ids."""
        publisher = await self.broker(layout).publisher()
        ids = set()
        for queue in (*layout.http_queues, *layout.heavy_queues):
            submission = task_submission(TASK, "c", None)
            message = to_message(Admitted(submission, 1_775_000_000_000, 86_400), route=route_to(queue))
            assert await publisher.publish([message]) == [PublishOutcome.CONFIRMED]
            ids.add(submission.id)
        return ids

    async def keep_submitting(self) -> None:
        while True:
            await self.submit(LARGER)
            await asyncio.sleep(0.2)

    async def accepted(self, count: int) -> set[str]:
        consumer = await self.broker(DEFAULT).consumer(CONSENSUS_TASKS, 100)
        ids: set[str] = set()
        async with asyncio.timeout(60):
            while len(ids) < count:
                events = await consumer.receive()
                ids |= {json.loads(event.body)["data"]["task_id"] for event in events}
                await consumer.ack(events)
        await consumer.close()
        return ids

    async def close(self) -> None:
        for broker in self._brokers:
            await broker.close()


def arrives_in_surplus_queues(management: Management) -> bool:
    """Whether the statistics show that messages arrive there."""
    queues = management.queues()
    return any(rate(queues[name], "publish") for name in SURPLUS)


@pytest.fixture
async def harness(rabbitmq: RabbitServer, rabbitmq_url: str) -> AsyncIterator[Harness]:
    harness = Harness(rabbitmq_url, rabbitmq)
    await apply_topology(harness.broker(LARGER), harness.management(LARGER))
    yield harness
    await harness.close()


async def test_smaller_number_drains_and_removes_queues(harness: Harness, tmp_path: Path) -> None:
    """A worker that knows the smaller number empties the queues, and leaves them so that they can be deleted."""
    assert harness.management(LARGER).differences() == []
    submitted = await harness.submit(LARGER)
    broker, management = harness.broker(DEFAULT), harness.management(DEFAULT)
    differences = management.differences()
    assert [sentence.split()[1] for sentence in differences] == SURPLUS
    assert all("INGEST_HTTP_QUEUES" in sentence for sentence in differences)
    assert management.surplus_queues() == SURPLUS
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="c"))
    worker = Worker(
        store=store,
        broker=broker,
        admission=Admission(store),
        trusted_users=frozenset({"guest"}),
        prefetch=dict.fromkeys(DEFAULT.ingest_queues, 10),
        surplus_interval=0.5,
    )
    working = asyncio.create_task(worker.run())
    assert await harness.accepted(len(submitted)) == submitted
    await remove_surplus(broker, management, management.surplus_queues())
    assert management.surplus_queues() == []
    assert management.differences() == []
    worker.stop()
    await working
    await store.close()


async def test_queue_with_messages_is_not_removed_without_a_worker(harness: Harness) -> None:
    await harness.submit(LARGER)
    broker, management = harness.broker(DEFAULT), harness.management(DEFAULT)
    with pytest.raises(BrokerUnavailable, match="3 messages left in the surplus queues: see that workers run"):
        await remove_surplus(broker, management, management.surplus_queues(), seconds=1)
    assert management.surplus_queues() == SURPLUS
    assert len(await harness.submit(LARGER)) == 6  # they are bound again


async def test_queue_that_a_shim_still_uses_is_not_removed(harness: Harness) -> None:
    broker, management = harness.broker(DEFAULT), harness.management(DEFAULT)
    queues = management.surplus_queues()
    submitting = asyncio.create_task(harness.keep_submitting())
    await eventually(lambda: arrives_in_surplus_queues(management), 60)
    with pytest.raises(ConfigurationError, match=r"messages arrive in .*: restart all shims with the smaller number"):
        await remove_surplus(broker, management, queues)
    submitting.cancel()
    assert await harness.submit(LARGER)  # they are still bound


async def test_deletion_counts_the_messages_that_it_deletes(harness: Harness) -> None:
    await harness.submit(LARGER)
    assert await harness.broker(DEFAULT).delete([admitted_queue(name) for name in SURPLUS]) == 3


async def test_shim_with_the_larger_number_is_refused_and_loses_nothing(harness: Harness) -> None:
    """After the removal, and before: the binding goes first."""
    broker, management = harness.broker(DEFAULT), harness.management(DEFAULT)
    await remove_surplus(broker, management, management.surplus_queues())
    publisher = await harness.broker(LARGER).publisher()
    submission = task_submission(TASK, "c", None)
    for route, outcome in (("http.3", PublishOutcome.UNROUTABLE), ("http.1", PublishOutcome.CONFIRMED)):
        message = to_message(Admitted(submission, 1_775_000_000_000, 86_400), route=route)
        assert await publisher.publish([message]) == [outcome]
    await harness.broker(LARGER).declare()
    assert management.surplus_queues() == SURPLUS
