"""`asg-submit` against two shims and two workers on RabbitMQ and Aerospike."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from tests.e2e.test_bulk import journalled, task, write
from tests.e2e.test_cluster import Deployment, broker, data, deployment, drain

__all__ = ["broker", "deployment"]  # fixtures

LINES = 4_500
"""`drain` takes 5,000 at most."""


async def submit(deployment: Deployment, url: str, file: Path, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asg_gateway", str(file), "--base-url", url, "--json", *options),
        env={**os.environ, "ASG_API_KEY": deployment.api_key},
        stdout=asyncio.subprocess.PIPE,
    )


async def test_killed_and_run_again_elsewhere(deployment: Deployment, broker: RabbitBroker, tmp_path: Path) -> None:
    """SIGKILL, the journal lost, the other shim, other chunks: one task a line, one charge a task."""
    file = write(tmp_path / "tasks.jsonl", [task(number) for number in range(LINES)])
    journal = tmp_path / "tasks.jsonl.journal"
    killed = await submit(deployment, deployment.urls[0], file, "--chunk", "100", "--concurrency", "2")
    async with asyncio.timeout(60):
        while journalled(journal) < 3:
            await asyncio.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert await killed.wait() == -signal.SIGKILL
    assert journalled(journal) < LINES / 100
    journal.unlink()
    again = await submit(deployment, deployment.urls[1], file, "--chunk", "700")
    out, _ = await asyncio.wait_for(again.communicate(), 60)
    assert (again.returncode, json.loads(out)["accepted"]) == (0, LINES)
    accepted = [data(each) for each in await drain(broker, topology.CONSENSUS_TASKS, LINES)]
    assert len({each["task_id"] for each in accepted}) == LINES
    assert {(each["data_url"], each["label_spec"]["question"]) for each in accepted} == {
        (f"https://a.example/{number}", "Animal?") for number in range(LINES)
    }
    shown = await asyncio.to_thread(deployment.ingest, "customer", "show", deployment.cust_id)
    assert shown["used_this_month"] == LINES
