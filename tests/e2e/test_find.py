"""`ingest find` shows a submission in each of its states: on RabbitMQ and Aerospike, and beside `ingest dev`."""

import asyncio
import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import httpx
import msgspec

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.messages import Message, PublishOutcome
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
KEYED = TASK | {"idempotency_key": "order-7"}


class Support:
    """A person who looks for submissions."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self.directory = directory
        self.env = env

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_ingest("find", *arguments, env=self.env, directory=self.directory)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def entry(self, *arguments: str) -> Any:
        (entry,) = self.json(*arguments)["entries"]
        return entry


async def publish(url: str, cust_id: str, message_id: str) -> None:
    broker = RabbitBroker(url)
    message = Message(
        exchange=topology.SUBMISSIONS,
        routing_key=f"task.submitted.{cust_id}",
        body=msgspec.json.encode(TASK),
        message_id=message_id,
    )
    assert await (await broker.publisher()).publish([message]) == [PublishOutcome.CONFIRMED]
    await broker.close()


async def test_submission_is_found_on_its_way_through_rabbitmq_and_aerospike(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> None:
    """It is queued until a worker runs. A direct one over quota is in ingest.dead, until a redrive succeeds."""
    (port,) = free_ports(1)
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    support = Support(tmp_path, env)

    def ingest(*arguments: str) -> str:
        done = run_ingest(*arguments, env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ingest("topology", "apply")
    ingest("customer", "add", cust_id, "--quota", "1")
    api_key = json.loads(ingest("key", "create", cust_id, "--json"))["api_key"]
    with Ingest("serve", "--port", str(port), directory=tmp_path, env=env) as serve:
        serve.wait_for("serving")
        url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(wait_ready, url)
        headers = {"Authorization": f"Bearer {api_key}", "X-Request-Id": "req-1"}
        headers["traceparent"] = f"00-{TRACE_ID}-b7ad6b7169203331-01"
        answer = await asyncio.to_thread(httpx.post, f"{url}/v1/tasks", json=KEYED, headers=headers, timeout=20)
        assert answer.status_code == 202, (answer.text, serve.text())
    task_id = answer.json()["task_id"]
    queued = support.entry("order-7", "--customer", cust_id)
    assert (queued["id"], queued["phase"], queued["event_confirmed"]) == (task_id, "queued", False)
    assert (queued["request_id"], queued["trace_id"]) == ("req-1", TRACE_ID)
    assert queued["created_at"] == answer.json()["created_at"]
    with Ingest("work", directory=tmp_path, env=env) as work:
        work.wait_for("worker_started")
        await asyncio.to_thread(wait_until, lambda: support.entry(task_id)["event_confirmed"], "the event", 20)
        await publish(rabbitmq_url, cust_id, "order-8")
        await asyncio.to_thread(wait_until, lambda: support.json("order-8")["dead_letters"], "the dead letter", 20)
        found = support.run("order-8", "--customer", cust_id)
        assert found.returncode == 0
        assert "  reason      quota_exhausted: " in found.stdout
        assert "  what to do  Redrive it next month" in found.stdout
        ingest("customer", "set", cust_id, "--quota", "2")
        ingest("dlq", "redrive", "--customer", cust_id)
        direct_id = keyed_id(SubmissionKind.TASK, cust_id, "order-8")
        await asyncio.to_thread(wait_until, lambda: support.json(direct_id)["entries"], "the redriven task", 20)
        direct = support.entry("order-8", "--customer", cust_id)
        assert (direct["id"], direct["message_id"], direct["request_id"]) == (direct_id, "order-8", "")
    nothing = support.run("order-9", "--customer", cust_id)
    assert (nothing.returncode, nothing.stderr) == (1, "")
    assert nothing.stdout.startswith("order-9 was not found: it was never submitted")
    for wrong in (("",), (b"\xff",), ("x", "--customer", "")):
        refused = support.run(*map(os.fsdecode, wrong))
        assert (refused.returncode, "must be text in UTF-8 and not empty" in refused.stderr) == (2, True)
    assert "was not found: this customer does not exist" in support.run("order-7", "--customer", "acne").stdout
    (closed,) = free_ports(1)
    support.env = env | {"INGEST_BROKER_URL": f"amqp://127.0.0.1:{closed}"}
    half = support.run(task_id)
    assert (half.returncode, "state       accepted" in half.stdout) == (1, True), half.stdout
    assert half.stderr.startswith("missing: the dead letters: ")


def test_submission_is_found_beside_a_running_dev(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    support = Support(tmp_path, {})
    with Ingest("dev", "--port", str(port), "--api-key", "key", directory=tmp_path) as dev:
        dev.wait_for("serving")
        wait_ready(url)
        task_id = httpx.post(f"{url}/v1/tasks", json=KEYED, headers={"Authorization": "Bearer key"}).json()["task_id"]
        dev.wait_for("task.accepted")
        wait_until(lambda: support.entry("order-7")["event_confirmed"], "the event", 20)
        text = support.run(task_id)
        assert (text.returncode, text.stderr) == (0, "")
        assert text.stdout.startswith(f"task {task_id} of dev\n  state       accepted: all its events are confirmed\n")
