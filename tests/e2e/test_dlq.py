"""`ingest dlq` as an operator uses it: on RabbitMQ while a worker runs, and on the embedded queue."""

import asyncio
import json
import stat
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters
from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.operations.dead_letters import Selection, redrive
from ingest.worker.customers import CUSTOMER_CACHE
from tests.contract.test_dead_letters import rejected_message
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import wait_until

TASKS = 80
QUOTA = 5


class Operator:
    """Runs commands in one environment. `customer` is unknown to other tests, which share the store."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self.directory = directory
        self.env = env
        self.customer = f"acme-{uuid.uuid4().hex[:12]}"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_ingest(*arguments, env=self.env, directory=self.directory)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def submission(self, number: int, **changes: Any) -> Message:
        """Return a submission of the customer."""
        fields: dict[str, Any] = {
            "exchange": topology.SUBMISSIONS,
            "routing_key": f"task.submitted.{self.customer}",
            "body": msgspec.json.encode(TASK),
            "message_id": f"order-{number}",
        }
        return Message(**(fields | changes))

    def counts(self) -> dict[str, int]:
        return {group["reason"]: group["count"] for group in self.json("dlq", "list")}


@pytest.fixture
async def operator(
    rabbitmq: RabbitServer, aerospike: AerospikeServer, rabbitmq_url: str, tmp_path: Path
) -> AsyncIterator[Operator]:
    """Create the topology and a customer with a small quota, and start a worker."""
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    operator = Operator(tmp_path, env)
    assert (await asyncio.to_thread(operator.run, "topology", "apply")).returncode == 0
    operator.json("customer", "add", operator.customer, "--quota", str(QUOTA))
    with Ingest("work", directory=tmp_path, env=env) as worker:
        worker.wait_for("worker_started")
        yield operator
        assert worker.stop() == 0


async def publish(operator: Operator, messages: list[Message]) -> None:
    broker = RabbitBroker(operator.env["INGEST_BROKER_URL"])
    publisher = await broker.publisher()
    assert set(await publisher.publish(messages)) == {PublishOutcome.CONFIRMED}
    await broker.close()


async def depth(operator: Operator, queue: str) -> int:
    broker = RabbitBroker(operator.env["INGEST_BROKER_URL"])
    counts = (await broker.inspect([queue])).queues[queue]
    return counts[0] if counts else 0


async def wait_for_depth(operator: Operator, queue: str, count: int) -> None:
    async with asyncio.timeout(30):
        while await depth(operator, queue) != count:
            await asyncio.sleep(0.1)


async def test_dead_letters_are_redriven_exactly_once_even_if_a_redrive_crashes(
    operator: Operator, tmp_path: Path
) -> None:
    """The operator lists, shows, exports, redrives (one redrive is killed), and purges."""
    invalid = operator.submission(900, body=b'{"type": "moderation", "password": "asg_live_topsecret"}')
    await publish(operator, [operator.submission(i) for i in range(TASKS)] + [invalid])
    dead = TASKS - QUOTA + 1
    await wait_for_depth(operator, topology.INGEST_DEAD, dead)

    listed = {group["reason"]: group for group in operator.json("dlq", "list")}
    assert {reason: group["count"] for reason, group in listed.items()} == {"quota_exhausted": dead - 1, "invalid": 1}
    assert listed["quota_exhausted"]["oldest_age_seconds"] < 60
    assert "customer set" in listed["quota_exhausted"]["what_to_do"]
    shown = operator.run("dlq", "show", listed["invalid"]["example"]["id"]).stdout
    assert "data_url is required" in shown
    assert "topsecret" not in shown
    assert "order-900" in shown

    exported = operator.run("dlq", "export", "dead.jsonl")
    assert exported.returncode == 0, exported.stderr
    lines = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) == dead
    assert stat.S_IMODE((tmp_path / "dead.jsonl").stat().st_mode) == 0o600
    assert operator.run("dlq", "export", "dead.jsonl").returncode == 2

    operator.json("customer", "set", operator.customer, "--quota", "unlimited")
    await asyncio.sleep(CUSTOMER_CACHE + 0.1)  # until the quota in the cache of the worker expires
    dry = operator.json("dlq", "redrive", "--reason", "quota_exhausted", "--dry-run")
    assert (dry["matched"], dry["redriven"]) == (dead - 1, {"quota_exhausted": dead - 1})
    assert operator.counts() == {"quota_exhausted": dead - 1, "invalid": 1}

    await kill_redrive_after_some_messages(operator)
    remaining = operator.counts()["quota_exhausted"]
    assert 0 < remaining < dead - 1
    report = operator.json("dlq", "redrive", "--reason", "quota_exhausted")
    assert report["redriven"] == {"quota_exhausted": remaining}
    assert (report["not_redriven"], report["failed"]) == ({}, {})
    # An invalid submission becomes a dead letter again, however often it is redriven.
    for _ in range(2):
        assert operator.json("dlq", "redrive", "--all")["redriven"] == {"invalid": 1}
        await wait_for_depth(operator, topology.INGEST_DEAD, 1)
    assert await accepted_orders(operator) == Counter(dict.fromkeys(range(TASKS), 1))

    unconfirmed = operator.run("dlq", "purge", "--all")
    assert (unconfirmed.returncode, "--yes" in unconfirmed.stderr) == (2, True)
    assert operator.json("dlq", "purge", "--all", "--dry-run")["purged"] == 0
    assert operator.json("dlq", "purge", "--reason", "invalid", "--yes")["purged"] == 1
    assert operator.run("dlq", "list").stdout == "no dead letters\n"


async def kill_redrive_after_some_messages(operator: Operator) -> None:
    """Start a slow redrive, kill it after about ten messages, and wait until the broker has requeued its deliveries."""
    arguments = ("dlq", "redrive", "--all", "--rate", "20/s")
    with Ingest(*arguments, directory=operator.directory, env=operator.env) as running:
        async with asyncio.timeout(20):
            while await depth(operator, topology.CONSENSUS_TASKS) < QUOTA + 10:
                await asyncio.sleep(0.05)
        running.process.kill()
        running.process.wait()
    before = -1
    while before != (before := await depth(operator, topology.INGEST_DEAD)):
        await asyncio.sleep(0.5)


async def accepted_orders(operator: Operator) -> Counter[int]:
    """Count the task.accepted events by the number of their order."""
    await wait_for_depth(operator, topology.CONSENSUS_TASKS, TASKS)
    broker = RabbitBroker(operator.env["INGEST_BROKER_URL"])
    consumer = await broker.consumer(topology.CONSENSUS_TASKS, 1000)
    deliveries: list[Delivery] = []
    while len(deliveries) < TASKS:
        deliveries += await consumer.receive()
    await broker.close()
    ids = Counter(json.loads(delivery.body)["data"]["task_id"] for delivery in deliveries)
    return Counter(
        {number: ids[keyed_id(SubmissionKind.TASK, operator.customer, f"order-{number}")] for number in range(TASKS)}
    )


class NeverRemovingDeadLetters(RabbitDeadLetters):
    """Leaves every dead letter in the queue, like a process that crashes between confirm and ack."""

    async def remove(self, deliveries: Any) -> None:
        """Do nothing."""


async def test_dead_letters_redriven_twice_after_a_missing_ack_are_accepted_once(operator: Operator) -> None:
    await publish(operator, [operator.submission(i) for i in range(TASKS)])
    dead = TASKS - QUOTA
    await wait_for_depth(operator, topology.INGEST_DEAD, dead)
    operator.json("customer", "set", operator.customer, "--quota", "unlimited")
    await asyncio.sleep(CUSTOMER_CACHE + 0.1)  # until the quota in the cache of the worker expires
    url = operator.env["INGEST_BROKER_URL"]
    management = Management(operator.env["INGEST_MANAGEMENT_URL"], urlsplit(url).path[1:])
    for dead_letters_class in (NeverRemovingDeadLetters, RabbitDeadLetters):
        broker = RabbitBroker(url)
        queue = dead_letters_class(broker, management)
        report = await redrive(queue, await broker.publisher(), Selection(), frozenset({"guest"}))
        await queue.close()
        assert report.done.total() == dead
    await wait_for_depth(operator, topology.INGEST_DEAD, 0)
    await wait_for_depth(operator, topology.INGEST_TASKS, 0)
    assert await accepted_orders(operator) == Counter(dict.fromkeys(range(TASKS), 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("redrive",), "select dead letters"),
        (("purge", "--yes"), "select dead letters"),
        (("purge", "--all"), "cannot ask for confirmation without a terminal"),
        (("redrive", "--all", "--reason", "invalid"), "cannot be combined"),
        (("redrive", "--all", "--rate", "fast"), "--rate must be"),
        (("list", "--older-than", "7"), "--older-than must be a time"),
        (("show", "dead:0"), ".ingest/queue.db does not exist"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_what_to_change(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run_ingest("dlq", *arguments, env={}, directory=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


async def test_embedded_dead_letters_can_be_read_while_dev_runs_and_changed_after_it_stops(tmp_path: Path) -> None:
    operator = Operator(tmp_path, {"INGEST_DATA_DIR": str(tmp_path / "d")})
    broker = await EmbeddedBroker.open(tmp_path / "d" / "queue.db")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    await (await broker.publisher()).publish([rejected_message(i, now=now) for i in range(3)])
    await broker.close()
    with Ingest("dev", "--port", "0", directory=tmp_path, env=operator.env) as dev:
        dev.wait_for("Ctrl-C stops it")
        assert operator.counts() == {"quota_exhausted": 3}
        assert "m1" in operator.run("dlq", "show", "d1").stdout
        assert operator.run("dlq", "show", "d9").returncode == 2
        assert operator.run("dlq", "export", "-").stdout.count("\n") == 3
        blocked = operator.run("dlq", "redrive", "--all")
        assert (blocked.returncode, "stop it first" in blocked.stderr) == (2, True), blocked.stderr
        assert dev.stop() == 0
    assert operator.json("dlq", "redrive", "d1", "d2")["redriven"] == {"quota_exhausted": 2}
    assert operator.json("dlq", "purge", "--all", "--yes")["purged"] == 1
    assert operator.counts() == {}
    # The customer acme does not exist here, so the worker rejects the redriven submissions.
    with Ingest("dev", "--port", "0", directory=tmp_path, env=operator.env) as dev:
        dev.wait_for("Ctrl-C stops it")
        wait_until(lambda: operator.counts() == {"unknown_customer": 2}, "two new dead letters", 15)
        assert dev.stop() == 0
