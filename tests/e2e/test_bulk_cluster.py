"""`asg-submit` against two shims and two workers on RabbitMQ and Aerospike."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from tests.e2e.test_bulk import journal_length, task, write_tasks
from tests.e2e.test_cluster import Deployment, broker, deployment, drain, event_data

__all__ = ["broker", "deployment"]  # fixtures

LINES = 4_500
"""Fewer than the 5,000 events that `drain` takes at most."""


async def start_submit(deployment: Deployment, url: str, file: Path, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asg_gateway", str(file), "--base-url", url, "--json", *options),
        env={**os.environ, "ASG_API_KEY": deployment.api_key},
        stdout=asyncio.subprocess.PIPE,
    )


async def test_rerun_on_another_shim_without_journal_accepts_and_charges_each_task_once(
    deployment: Deployment, broker: RabbitBroker, tmp_path: Path
) -> None:
    """The first run is killed; the second one uses the other shim and larger chunks."""
    file = write_tasks(tmp_path / "tasks.jsonl", [task(number) for number in range(LINES)])
    journal = tmp_path / "tasks.jsonl.journal"
    killed = await start_submit(deployment, deployment.urls[0], file, "--chunk", "100", "--concurrency", "2")
    async with asyncio.timeout(60):
        while journal_length(journal) < 3:
            await asyncio.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert await killed.wait() == -signal.SIGKILL
    assert journal_length(journal) < LINES / 100
    journal.unlink()
    rerun = await start_submit(deployment, deployment.urls[1], file, "--chunk", "700")
    stdout, _ = await asyncio.wait_for(rerun.communicate(), 60)
    result = json.loads(stdout)
    assert (rerun.returncode, result["accepted"] + result["replayed"]) == (0, LINES)
    assert result["replayed"] >= 300, "at least the chunks in the journal were accepted before"
    accepted = [event_data(delivery) for delivery in await drain(broker, topology.CONSENSUS_TASKS, LINES)]
    assert len({event["task_id"] for event in accepted}) == LINES
    assert {(event["data_url"], event["label_spec"]["question"]) for event in accepted} == {
        (f"https://a.example/{number}", "Animal?") for number in range(LINES)
    }
    shown = await asyncio.to_thread(deployment.ingest, "customer", "show", deployment.cust_id)
    assert shown["used_this_month"] == LINES
