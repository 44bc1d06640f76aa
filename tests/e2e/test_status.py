"""`ingest status` on a running system, and on one that is away."""

import asyncio
import json
import time
from pathlib import Path

import httpx

from ingest.broker.rabbitmq.broker import RabbitBroker
from tests.contract.test_dead_letters import refused
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until


async def test_a_running_system(
    rabbitmq: RabbitServer, aerospike: AerospikeServer, rabbitmq_url: str, tmp_path: Path
) -> None:
    """Queues with consumers, the worker's brake and readiness, the store, dead letters by reason."""
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
    await (await broker.publisher()).publish([refused(i, now=now) for i in range(3)])
    await broker.close()
    with Ingest("work", directory=tmp_path, env=env):
        url = f"http://127.0.0.1:{port}/readyz"
        await asyncio.to_thread(wait_until, lambda: httpx.get(url, timeout=5).status_code == 200, url, 30)
        done = await asyncio.to_thread(run_ingest, "status", "--json", env=env, directory=tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        seen = json.loads(done.stdout)
        queues = {each["name"]: each for each in seen["broker"]["queues"]}
        assert (queues["ingest.dead"]["ready"], queues["ingest.tasks"]["consumers"]) == (3, 1)
        (process,) = seen["processes"]
        assert (process["ready"], process["brake"], process["stalled"]) == (True, False, False)
        ((reason, count, oldest),) = [tuple(each.values()) for each in seen["dead"]]
        assert (reason, count) == ("quota_exhausted", 3)
        assert 90 <= oldest < 150
        assert seen["store"]["round_trip"] < 3
        shown = await asyncio.to_thread(run_ingest, "status", "--once", env=env, directory=tmp_path)
        assert "quota_exhausted" in shown.stdout
        assert "no problems seen" in shown.stdout
        assert "guest:guest" not in shown.stdout + done.stdout


def test_what_is_away_is_told(tmp_path: Path) -> None:
    """Exit code 1, a sentence each, no password."""
    env = {
        "INGEST_BROKER_URL": "amqp://user:topsecret@127.0.0.1:1/",
        "INGEST_STORE_URL": "aerospike://127.0.0.1:1/test",
    }
    done = run_ingest("status", "--once", "--scrape", "http://127.0.0.1:1", env=env, directory=tmp_path)
    assert done.returncode == 1
    assert "cannot connect to RabbitMQ" in done.stdout
    assert "serves no metrics" in done.stdout
    assert "topsecret" not in done.stdout + done.stderr


def test_the_embedded_default(tmp_path: Path) -> None:
    """Beside a running `ingest dev`, on its files."""
    with Ingest("dev", "--port", "0", directory=tmp_path) as dev:
        dev.wait_for("Ctrl-C stops it")
        done = run_ingest("status", "--json", env={}, directory=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        seen = json.loads(done.stdout)
        assert {each["ready"] for each in seen["broker"]["queues"]} == {0}
        assert seen["dead"] == []
        assert dev.stop() == 0
