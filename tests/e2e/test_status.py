"""`ingest status` while the system runs, and while its servers are unavailable."""

import asyncio
import json
import time
from pathlib import Path

import httpx

from ingest import __version__
from ingest.broker.rabbitmq.broker import RabbitBroker
from tests.contract.test_dead_letters import rejected_message
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until


async def test_status_shows_queues_processes_dead_letters_and_store(
    rabbitmq: RabbitServer, aerospike: AerospikeServer, rabbitmq_url: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
        "INGEST_METRICS_PORT": str(port),
    }
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 90))
    await (await broker.publisher()).publish([rejected_message(i, now=now) for i in range(3)])
    await broker.close()
    missing = await asyncio.to_thread(run_ingest, "status", "--once", env=env, directory=tmp_path)
    assert missing.returncode == 1
    assert "policies are missing for ingest.http.0, ingest.http.1, ingest.http.bulk, ingest.heavy.0" in missing.stdout
    assert (await asyncio.to_thread(run_ingest, "topology", "apply", env=env, directory=tmp_path)).returncode == 0
    with Ingest("work", directory=tmp_path, env=env):
        url = f"http://127.0.0.1:{port}/readyz"
        await asyncio.to_thread(wait_until, lambda: httpx.get(url, timeout=5).status_code == 200, url, 30)
        done = await asyncio.to_thread(run_ingest, "status", "--json", env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        status = json.loads(done.stdout)
        queues = {queue["name"]: queue for queue in status["broker"]["queues"]}
        assert (queues["ingest.dead"]["ready"], queues["ingest.tasks"]["consumers"]) == (3, 1)
        (process,) = status["processes"]
        assert process["version"] == __version__
        assert (process["ready"], process["brake"], process["stalled"]) == (True, False, False)
        ((reason, count, oldest),) = [tuple(group.values()) for group in status["dead"]]
        assert (reason, count) == ("quota_exhausted", 3)
        assert 90 <= oldest < 150
        assert queues["ingest.dead"]["oldest"] == oldest
        assert status["store"]["round_trip"] < 3
        shown = await asyncio.to_thread(run_ingest, "status", "--once", env=env, directory=tmp_path)
        assert "quota_exhausted" in shown.stdout
        assert shown.stdout.splitlines()[1] == "! 3 dead letters: run `ingest dlq list`"
        assert "guest:guest" not in shown.stdout + done.stdout


async def test_missing_queues_and_missing_policies_are_reported_together(
    rabbitmq: RabbitServer, rabbitmq_url: str, tmp_path: Path
) -> None:
    """A policy is missing for each queue that exists."""
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_STORE_URL": "aerospike://127.0.0.1:1/test",
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    await RabbitBroker(rabbitmq_url).declare()
    for queue in ("ingest.batches", "ingest.dead"):
        rabbitmq.api("DELETE", f"queues/{rabbitmq_url.rpartition('/')[2]}/{queue}")
    done = await asyncio.to_thread(run_ingest, "status", "--once", env=env, directory=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[1] == "! missing queues: ingest.batches, ingest.dead: run `ingest topology apply`"
    assert lines[2].startswith("! policies are missing for ingest.http.0")
    assert lines[2].endswith(": run `ingest topology apply`")
    assert lines[3].startswith("! Aerospike at 127.0.0.1:1")


def test_status_reports_unavailable_servers_without_passwords_and_exits_with_1(tmp_path: Path) -> None:
    env = {
        "INGEST_BROKER_URL": "amqp://user:topsecret@127.0.0.1:1/",
        "INGEST_STORE_URL": "aerospike://127.0.0.1:1/test",
    }
    done = run_ingest("status", "--once", "--scrape", "http://127.0.0.1:1", env=env, directory=tmp_path)
    assert done.returncode == 1
    assert "cannot connect to RabbitMQ" in done.stdout
    assert "serves no metrics" in done.stdout
    assert "topsecret" not in done.stdout + done.stderr


def test_status_reads_the_files_of_a_running_dev_by_default(tmp_path: Path) -> None:
    with Ingest("dev", "--port", "0", directory=tmp_path) as dev:
        dev.wait_for("Ctrl-C stops it")
        done = run_ingest("status", "--json", env={}, directory=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        status = json.loads(done.stdout)
        assert {queue["ready"] for queue in status["broker"]["queues"]} == {0}
        assert status["dead"] == []
        assert dev.stop() == 0
