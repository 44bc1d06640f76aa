"""A direct producer gets a report of each refusal under its own key, although the worker is killed meanwhile."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from asg_gateway.amqp import Feedback, Producer, SubmissionDuplicate, SubmissionRejected

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.topology import CONSENSUS_TASKS
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import AerospikeServer, RabbitServer
from tests.support.tasks import TASK

QUOTA = 200
OTHER = TASK | {"data_url": "https://a.example/other"}
UNREGISTERED = TASK | {"callback_url": "https://example.com/hooks/unknown"}


class Service:
    """A strict customer with a quota, its producer's user, and a worker."""

    def __init__(self, env: dict[str, str], directory: Path) -> None:
        self.customer = f"acme{uuid4().hex[:8]}"
        self.env = env
        self.directory = directory
        self._ingest("topology", "apply")
        self._ingest("customer", "add", self.customer, "--quota", str(QUOTA), "--strict")
        password = json.loads(self._ingest("producer", "add", self.customer, "--json"))["password"]
        self.url = f"amqp://{self.customer}:{quote(password)}@{env['INGEST_BROKER_URL'].partition('@')[2]}"

    def _ingest(self, *arguments: str) -> str:
        done = run_ingest(*arguments, env=self.env, directory=self.directory)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def worker(self) -> Ingest:
        return Ingest("work", directory=self.directory, env=self.env)

    async def accepted(self, count: int) -> dict[str, str]:
        """Return the task ids of so many accepted tasks, by idempotency key."""
        broker = RabbitBroker(self.env["INGEST_BROKER_URL"])
        consumer = await broker.consumer(CONSENSUS_TASKS, 1000)
        ids: dict[str, str] = {}
        async with asyncio.timeout(60):
            while len(ids) < count:
                events = await consumer.receive()
                accepted = [json.loads(event.body)["data"] for event in events]
                ids |= {data["idempotency_key"]: data["task_id"] for data in accepted}
                await consumer.ack(events)
        await broker.close()
        return ids


@pytest.fixture
async def service(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> AsyncIterator[Service]:
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    service = await asyncio.to_thread(Service, env, tmp_path)
    yield service
    rabbitmq.api("DELETE", f"users/{service.customer}")


async def submit(producer: Producer, tasks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Submit tasks by key; return their ids by key."""
    results = await asyncio.gather(*[producer.submit(task, key=key) for key, task in tasks.items()])
    return {result.key: result.task_id for result in results}


async def test_producer_gets_a_report_of_each_refusal_and_duplicate_under_its_own_key(service: Service) -> None:
    """What has no report was accepted, under the id that it has computed."""
    first = {f"order-{number}": TASK for number in range(QUOTA - 50)}
    repeated = {f"order-{number}": TASK for number in range(20)}
    conflicting = {f"order-{number}": OTHER for number in range(20, 40)}
    wrong = {f"wrong-{number}": UNREGISTERED for number in range(20)}
    further = {f"late-{number}": TASK for number in range(100)}
    async with Producer(service.url) as producer, Feedback(service.url, timeout=60) as feedback:
        with service.worker():
            ids = await submit(producer, first | wrong)
            assert await service.accepted(len(first)) == {key: ids[key] for key in first}
        # It was killed. What it had not settled is delivered again, and waits until its lease has ended.
        for part in (repeated, conflicting, further):
            ids |= await submit(producer, part)
        with service.worker():
            late = await service.accepted(50)
            reasons: dict[str, set[str]] = defaultdict(set)
            async for report in feedback:
                if isinstance(report, SubmissionRejected):
                    reasons[report.reason].add(report.key)
                elif isinstance(report, SubmissionDuplicate):
                    reasons["duplicate"].add(report.key)
                    assert report.task_id == ids[report.key]
                if sum(map(len, reasons.values())) == len({*repeated, *conflicting, *wrong, *further} - {*late}):
                    break
    assert late == {key: ids[key] for key in late}
    assert reasons == {
        "duplicate": set(repeated),
        "key_conflict": set(conflicting),
        "invalid": set(wrong),
        "quota_exhausted": set(further) - set(late),
    }
