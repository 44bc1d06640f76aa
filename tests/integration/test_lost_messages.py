"""A real queue loses submissions that were answered 202; repeats heal them, on a real ledger."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from ingest.admission import Admission, Request, Verdict
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.customers import Customer
from ingest.domain.messages import Delivery
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.domain.topology import CONSENSUS_TASKS, INGEST_QUEUES
from ingest.shim.pipeline import SubmissionPipeline
from ingest.store.aerospike.store import AerospikeStore
from ingest.worker import Worker
from tests.servers import RabbitServer
from tests.support.tasks import TASK

REPUBLISH_AFTER = 2.0


@pytest.fixture
async def store(aerospike_url: str) -> AsyncIterator[AerospikeStore]:
    store = await AerospikeStore.open(aerospike_url)
    yield store
    await store.close()


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    yield broker
    await broker.close()


@asynccontextmanager
async def running_worker(store: AerospikeStore, broker: RabbitBroker, admission: Admission) -> AsyncIterator[None]:
    prefetch = dict.fromkeys(INGEST_QUEUES, 100)
    assert broker.user is not None
    worker = Worker(
        store=store, broker=broker, admission=admission, trusted_users=frozenset({broker.user}), prefetch=prefetch
    )
    running = asyncio.create_task(worker.run())
    yield
    worker.stop()
    await asyncio.wait_for(running, 10)


async def accepted_ids(broker: RabbitBroker, count: int) -> list[str | None]:
    """Receive and ack at least `count` events; return their ids."""
    consumer = await broker.consumer(CONSENSUS_TASKS, 100)
    deliveries: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(deliveries) < count:
            deliveries += await consumer.receive()
    await consumer.ack(deliveries)
    await consumer.close()
    return [delivery.message_id for delivery in deliveries]


async def test_repeats_heal_a_task_and_a_batch_whose_messages_were_lost(
    store: AerospikeStore, broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """They are charged once."""
    customer = Customer(cust_id=f"c{uuid4().hex[:12]}", monthly_quota=10)
    await store.save_customer(customer)
    admission = Admission(store, republish_after=REPUBLISH_AFTER)
    pipeline = SubmissionPipeline(admission, await broker.publisher())
    task = task_submission(TASK, customer.cust_id, frozenset(), "k")
    items = [TASK, TASK | {"idempotency_key": "x"}]
    batch = batch_submission({"tasks": items}, customer.cust_id, frozenset(), "b")

    async def verdicts() -> list[Verdict]:
        requests = [Request(submission, customer) for submission in (task, batch)]
        return [decision.verdict for decision in await pipeline.run(requests)]

    assert await verdicts() == [Verdict.ADMITTED] * 2
    vhost = urlsplit(rabbitmq_url).path[1:]
    for queue in INGEST_QUEUES:
        rabbitmq.api("DELETE", f"queues/{vhost}/{queue}/contents")
    assert await verdicts() == [Verdict.REPLAY] * 2
    await asyncio.sleep(REPUBLISH_AFTER)
    assert await verdicts() == [Verdict.REPLAY] * 2
    async with running_worker(store, broker, admission):
        events = await accepted_ids(broker, 3)
    assert sorted(str(event).partition(":accepted:")[0] for event in events) == sorted(task_ids(task, batch))
    assert await verdicts() == [Verdict.REPLAY] * 2
    assert await store.used(customer.cust_id, time.strftime("%Y-%m", time.gmtime())) == 3


def task_ids(*submissions: Submission) -> list[str]:
    return [task.task_id for submission in submissions for task in submission.tasks]
