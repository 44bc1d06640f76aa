"""`--workers` and `--processes` start several processes of one command."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.processes import Ingest, wait_ready
from tests.servers import AerospikeServer
from tests.servers.process import free_ports, wait_until


def children(parent: int) -> set[int]:
    """Return the ids of the child processes."""
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}


@pytest.mark.parametrize("command", ["serve", "work"])
def test_killed_process_is_replaced_and_sigterm_stops_all(
    command: str, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_STORE_URL": aerospike.url}
    options = ("--port", str(port), "--workers", "2") if command == "serve" else ("--processes", "2")
    with Ingest(command, *options, directory=tmp_path, env=env) as running:
        parent = running.process.pid
        wait_until(lambda: len(children(parent)) == 2, "two processes", 20)
        if command == "serve":
            wait_ready(f"http://127.0.0.1:{port}")
        else:
            wait_until(lambda: running.text().count('"worker_started"') == 2, "two starts", 20)
        before = children(parent)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(children(parent) - {victim}) == 2, "a new process", 20)
        assert before & children(parent) == before - {victim}
        if command == "serve":
            wait_ready(f"http://127.0.0.1:{port}")
        else:
            wait_until(lambda: running.text().count('"worker_started"') == 3, "three starts", 20)
        assert running.stop(30) == 0
        assert "Traceback" not in running.text()


def test_wrong_setting_exits_with_2_and_is_not_retried(tmp_path: Path) -> None:
    env = {"INGEST_BROKER_URL": "amqp://127.0.0.1:1/", "INGEST_STORE_URL": "mongodb://nowhere"}
    with Ingest("work", "--processes", "2", directory=tmp_path, env=env) as running:
        assert running.process.wait(30) == 2
        assert "INGEST_STORE_URL must begin with" in running.text()
        assert "Traceback" not in running.text()
