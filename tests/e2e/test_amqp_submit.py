"""`asg-submit --amqp-url` against RabbitMQ, Aerospike and a worker: each task is accepted exactly once."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.e2e.processes import Ingest, run_ingest
from tests.e2e.test_bulk import journal_length, task, write_tasks
from tests.servers import AerospikeServer, RabbitServer
from tests.support.eventually import eventually

LINES = 6_000
PASSWORD = "pw-that-is-secret"


@dataclass
class Run:
    """The result of one run of `asg-submit`."""

    code: int
    result: dict[str, int]
    stderr: str


class Service:
    """A worker, and the direct producer `cust_id` with a login of its own."""

    def __init__(self, cust_id: str, admin_url: str, directory: Path) -> None:
        self.cust_id = cust_id
        self.url = admin_url.replace("guest:guest", f"{cust_id}:{PASSWORD}")
        self._admin_url = admin_url
        self._directory = directory

    async def start(self, *arguments: str | Path, **env: str) -> asyncio.subprocess.Process:
        """Start `asg-submit`. The URL comes from the environment."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asg_gateway", *map(str, arguments), "--json"),
            env={**os.environ, "ASG_AMQP_URL": self.url, **env},
            cwd=self._directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str | Path, **env: str) -> Run:
        process = await self.start(*arguments, **env)
        stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
        assert PASSWORD not in stderr.decode()
        return Run(process.returncode or 0, json.loads(stdout) if stdout else {}, stderr.decode())

    async def accepted(self, expected: int) -> list[dict[str, Any]]:
        """Take the data of the `task.accepted` events; wait for so many, and then for copies."""
        events: list[dict[str, Any]] = []

        async def take(message: AbstractIncomingMessage) -> None:
            events.append(json.loads(message.body)["data"])

        async with await aio_pika.connect(self._admin_url) as connection, connection.channel() as channel:
            queue = await channel.get_queue("consensus.tasks", ensure=False)
            consuming = await queue.consume(take, no_ack=True)
            await eventually(lambda: len(events) >= expected, 60)
            await asyncio.sleep(1)
            await queue.cancel(consuming)
        return events


@pytest.fixture
async def service(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> AsyncIterator[Service]:
    service = Service(f"acme{uuid4().hex[:8]}", rabbitmq_url, tmp_path)
    vhost = rabbitmq_url.rpartition("/")[2]
    env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_STORE_URL": aerospike.url}
    env["INGEST_MANAGEMENT_URL"] = rabbitmq.management_url.replace("//", "//guest:guest@")
    for command in (("topology", "apply"), ("customer", "add", service.cust_id)):
        done = await asyncio.to_thread(run_ingest, *command, env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr
    rabbitmq.api("PUT", f"users/{service.cust_id}", {"password": PASSWORD, "tags": ""})
    permissions = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
    rabbitmq.api("PUT", f"permissions/{vhost}/{service.cust_id}", permissions)
    with Ingest("work", directory=tmp_path, env=env):
        yield service
    rabbitmq.api("DELETE", f"users/{service.cust_id}")


@pytest.mark.parametrize("keep_journal", [True, False], ids=["journal", "no journal"])
async def test_rerun_after_sigkill_accepts_every_task_exactly_once(
    service: Service, tmp_path: Path, keep_journal: bool
) -> None:
    """Without the journal, the service recognizes the chunks and the tasks, also in chunks of another size."""
    file = write_tasks(tmp_path / "tasks.jsonl", [task(number) for number in range(LINES)])
    journal = tmp_path / "tasks.jsonl.journal"
    killed = await service.start(file, "--chunk", "20", "--concurrency", "2", "--quiet")
    await eventually(lambda: journal_length(journal) >= 10, 30)
    killed.send_signal(signal.SIGKILL)
    assert await killed.wait() == -signal.SIGKILL
    assert journal_length(journal) < LINES / 20
    if not keep_journal:
        journal.unlink()
    rerun = await service.run(file, "--chunk", "20" if keep_journal else "300", "--ids", tmp_path / "ids")
    assert rerun.code == 0
    assert rerun.result["published"] + rerun.result["skipped"] == LINES
    assert (rerun.result["skipped"] > 0) == keep_journal
    assert "accepted" not in rerun.result
    events = await service.accepted(LINES)
    assert Counter(event["data_url"] for event in events) == {f"https://a.example/{n}": 1 for n in range(LINES)}
    ids = {json.loads(line)["task_id"] for line in (tmp_path / "ids").read_text().splitlines()}
    assert ids <= {event["task_id"] for event in events}
    assert len(ids) == rerun.result["published"]


async def test_invalid_lines_are_reported_and_the_others_published(service: Service, tmp_path: Path) -> None:
    """The command finds an unknown type, and a task that is too large."""
    tasks = [task(number) for number in range(30)]
    tasks[3]["type"] = "mood"
    tasks[7]["label_spec"]["note"] = "x" * 300_000
    file = write_tasks(tmp_path / "tasks.jsonl", tasks)
    run = await service.run(file)
    assert (run.code, run.result["published"], run.result["refused"]) == (1, 28, 2)
    assert (
        "28 published, 2 refused\nasg-submit: published lines are in RabbitMQ. What the service rejects" in run.stderr
    )
    assert f"feedback.{service.cust_id}" in run.stderr
    errors = [json.loads(line) for line in (tmp_path / "tasks.jsonl.errors.jsonl").read_text().splitlines()]
    assert [(error["line"], error["errors"][0]["field"]) for error in errors] == [(4, "type"), (8, "")]
    assert "bytes as canonical JSON, at most 262144" in errors[1]["errors"][0]["error"]
    assert len(await service.accepted(28)) == 28


async def test_wrong_login_or_address_ends_the_run(service: Service, tmp_path: Path) -> None:
    file = write_tasks(tmp_path / "tasks.jsonl", [task(1)])
    refused = await service.run(file, ASG_AMQP_URL=service.url.replace(PASSWORD, "wrong"))
    assert (refused.code, "the login was refused: check user and password" in refused.stderr) == (2, True)
    unreachable = await service.run(file, "--patience", "1", ASG_AMQP_URL=f"amqp://acme:{PASSWORD}@127.0.0.1:1/")
    assert (unreachable.code, "run the same command again to continue" in unreachable.stderr) == (3, True)
    assert (await service.run(file)).result["published"] == 1
