"""A shim and a worker that connect as different users of RabbitMQ, of which the worker trusts only its own."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ingest.admission import Admission, Request
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.addresses import DEFAULT_ROUTE, routing_key
from ingest.domain.customers import Customer
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.submissions import task_submission
from ingest.shim.pipeline import SubmissionPipeline
from ingest.store.sqlite import SqliteStore
from ingest.worker import Worker
from tests.contract.test_broker import take
from tests.servers import RabbitServer
from tests.support.eventually import eventually
from tests.support.tasks import TASK

SHIM = "shim-2"
SUBMITTED = 40
PREFETCH = 10


class Service:
    """The parts of a service whose shim has another user than its worker."""

    def __init__(self, store: SqliteStore, url: str) -> None:
        self.store = store
        self.url = url
        self.broker = RabbitBroker(url)
        self.shim_broker = RabbitBroker(url.replace("guest:guest", f"{SHIM}:pw"))

    async def submit(self, count: int) -> set[str]:
        """Admit and publish tasks as the shim does; return their ids."""
        publisher = await self.shim_broker.publisher()
        customer = Customer(cust_id="http")
        submissions = [task_submission(TASK, "http", frozenset(), f"key-{number}") for number in range(count)]
        requests = [Request(submission, customer) for submission in submissions]
        decisions = await SubmissionPipeline(Admission(self.store), publisher).run(requests)
        assert all(decision.entry.owner for decision in decisions)
        return {submission.id for submission in submissions}

    @asynccontextmanager
    async def worker(self, *trusted_users: str) -> AsyncIterator[Worker]:
        broker = RabbitBroker(self.url)
        worker = Worker(
            store=self.store,
            broker=broker,
            admission=Admission(self.store),
            trusted_users=frozenset(trusted_users),
            prefetch=dict.fromkeys(topology.INGEST_QUEUES, PREFETCH),
        )
        running = asyncio.create_task(worker.run())
        yield worker
        worker.stop()
        await asyncio.wait_for(running, 10)
        await broker.close()

    async def seconds_until_accepted(self, message_id: str) -> float:
        """Submit a task of `acme` to the queue of the others; return how long it took until it was accepted."""
        message = Message(
            exchange=topology.SUBMISSIONS,
            routing_key=routing_key(SubmissionKind.TASK, "acme", DEFAULT_ROUTE),
            body=json.dumps(TASK).encode(),
            message_id=message_id,
        )
        publisher = await self.broker.publisher()
        start = time.monotonic()
        assert await publisher.publish([message]) == [PublishOutcome.CONFIRMED]
        assert await self.accepted(1) == {keyed_id(SubmissionKind.TASK, "acme", message_id)}
        return time.monotonic() - start

    async def accepted(self, count: int) -> set[str]:
        """Return the ids of so many accepted tasks. Raises TimeoutError after 15 s."""
        consumer = await self.broker.consumer(topology.CONSENSUS_TASKS, 100)
        events = await take(consumer, count)
        await consumer.ack(events)
        await consumer.close()
        return {json.loads(event.body)["data"]["task_id"] for event in events}


@pytest.fixture
async def service(rabbitmq: RabbitServer, rabbitmq_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    rabbitmq.api("PUT", f"users/{SHIM}", {"password": "pw", "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbitmq.api("PUT", f"permissions/{rabbitmq_url.rpartition('/')[2]}/{SHIM}", everything)
    store = await SqliteStore.open(tmp_path / "store.db")
    service = Service(store, rabbitmq_url)
    await service.broker.declare()
    yield service
    await service.broker.close()
    await service.shim_broker.close()
    await store.close()
    rabbitmq.api("DELETE", f"users/{SHIM}")


async def test_worker_keeps_what_it_does_not_trust_and_says_why_it_is_not_ready(service: Service) -> None:
    """Other submissions pass, even if more of them are kept than the prefetch. Once trusted, all are accepted."""
    await service.store.save_customer(Customer(cust_id="acme"))
    kept = await service.submit(SUBMITTED)
    async with service.worker("guest") as worker:
        await eventually(lambda: worker.problems)
        (problem,) = worker.problems
        assert f"user {SHIM}" in problem
        assert "INGEST_TRUSTED_USERS" in problem
        assert await service.seconds_until_accepted("direct") < 10
        assert len(worker.problems) == 1
    async with service.worker("guest", SHIM) as worker:
        assert await service.accepted(SUBMITTED) == kept
        assert worker.problems == []
    depths = (await service.broker.inspect([topology.INGEST_DEAD, *topology.DEFAULT.http_queues])).queues
    assert set(depths.values()) == {(0, 0)}


async def test_submissions_that_came_back_twice_and_are_not_trusted_delay_no_others(service: Service) -> None:
    """They are suspects then. Workers return what they have kept for 20 minutes, so this happens after 40."""
    await service.store.save_customer(Customer(cust_id="acme"))
    await service.submit(SUBMITTED)
    for _ in range(2):
        broker = RabbitBroker(service.url)
        await take(await broker.consumer(topology.DEFAULT.http_queues[0], SUBMITTED), SUBMITTED)
        await broker.close()
    async with service.worker("guest") as worker:
        await eventually(lambda: worker.problems)
        assert await service.seconds_until_accepted("direct") < 10
