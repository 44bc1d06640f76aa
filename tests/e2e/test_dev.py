"""`ingest dev`: everything in one process, on files."""

import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from asg_gateway import ASGGatewayClient, QuotaExhaustedError

from tests.e2e.contract import BATCH_CURL, TASK, TASK_CURL, curl
from tests.e2e.processes import Ingest

READY = "Ctrl-C stops it"


def address(dev: Ingest) -> str:
    found = re.search(r"ready at (http://\S+)", dev.text())
    assert found
    return found[1]


def start(directory: Path, *options: str) -> Ingest:
    dev = Ingest("dev", "--port", "0", *options, directory=directory)
    dev.wait_for(READY)
    return dev


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Ingest]:
    with start(tmp_path, "--api-key", "my-key", "--quota", "5", "--webhook", "https://hooks.example/x") as running:
        yield running


def test_the_printed_curl_line_works(tmp_path: Path) -> None:
    """Pasted as printed it is accepted, and the task is logged; again, it is a replay."""
    with start(tmp_path) as dev:
        line = next(line for line in dev.text().splitlines() if line.startswith("curl"))
        first = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=True).stdout
        assert '"status":"pending"' in first
        task_id = first.split('"')[3]
        dev.wait_for(f'"{task_id}"')
        again = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=True).stdout
        assert '"idempotent":true' in again
        assert dev.stop() == 0


def test_the_contracts_curl_lines(dev: Ingest) -> None:
    """Success and replay, exactly the contract's keys."""
    first = curl(TASK_CURL, address(dev), "my-key")
    assert set(first) == {"task_id", "status", "created_at"}
    again = curl(TASK_CURL, address(dev), "my-key")
    assert again == first | {"idempotent": True}
    batch = curl(BATCH_CURL, address(dev), "my-key")
    assert set(batch) == {"batch_id", "task_count", "status"}
    assert (batch["task_count"], batch["status"]) == (2, "accepted")


def test_quota_and_webhooks_are_as_given(dev: Ingest) -> None:
    """--quota N tasks, then 403; --webhook URL may be a callback_url, others not."""
    with ASGGatewayClient("my-key", base_url=address(dev)) as client:
        client.submit_batch([TASK] * 4, callback_url="https://hooks.example/x")
        with pytest.raises(QuotaExhaustedError, match="quota exhausted"):
            client.submit_batch([TASK] * 2)
        key = client.submit_task(
            task_type="sentiment",
            data_url="https://a.example",
            label_spec=TASK["label_spec"],
            idempotency_key="k",
        )
        # A replay with an exhausted quota is no refusal.
        replay = client.submit_task(
            task_type="sentiment",
            data_url="https://a.example",
            label_spec=TASK["label_spec"],
            idempotency_key="k",
        )
        assert replay.idempotent
        assert replay.task_id == key.task_id
    answer = httpx.post(
        f"{address(dev)}/v1/tasks",
        json=TASK | {"callback_url": "https://evil.example"},
        headers={"Authorization": "Bearer my-key"},
    )
    assert answer.json() == {"error": "callback_url is not one of your registered webhook URLs"}


def test_a_restart_keeps_key_and_tasks(tmp_path: Path) -> None:
    """The key is kept for its owner only, and what was accepted is a replay."""
    with start(tmp_path) as dev:
        key_file = tmp_path / ".ingest" / "api_key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        key = key_file.read_text().strip()
        first = curl(TASK_CURL, address(dev), key)
        assert dev.stop() == 0
    with start(tmp_path) as dev:
        assert curl(TASK_CURL, address(dev), key) == first | {"idempotent": True}


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    """What was answered 2xx before SIGKILL is emitted after the restart."""
    with start(tmp_path, "--api-key", "k") as dev:
        answer = httpx.post(
            f"{address(dev)}/v1/tasks/batch",
            json={"tasks": [TASK] * 1000},
            headers={"Authorization": "Bearer k", "Prefer": "return=representation"},
            timeout=30,
        )
        dev.process.kill()
        assert answer.status_code == 202
    with start(tmp_path, "--api-key", "k") as dev:
        url = f"{address(dev)}/v1/tasks/batch/{answer.json()['batch_id']}"
        looked_up = httpx.get(url, headers={"Authorization": "Bearer k"}).json()
        assert looked_up["task_ids"] == answer.json()["task_ids"]
        dev.stop()
    import sqlite3

    queue = sqlite3.connect(tmp_path / ".ingest" / "queue.db")
    deadline = time.monotonic() + 10
    sql = "SELECT count(DISTINCT message_id) FROM message WHERE queue = 'consensus.tasks'"
    while queue.execute(sql).fetchone()[0] < 1000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    queue.close()


def test_a_second_one_on_the_same_files_is_told(dev: Ingest, tmp_path: Path) -> None:
    """One line that says what to change, exit code 2, and the first goes on."""
    with Ingest("dev", "--port", "0", directory=tmp_path) as second:
        assert second.process.wait(20) == 2
        assert "is in use by another process" in second.text()
        assert "Traceback" not in second.text()
    assert httpx.get(f"{address(dev)}/healthz").status_code == 200


def test_a_port_in_use_is_told(dev: Ingest, tmp_path: Path) -> None:
    """One line, exit code 2."""
    port = address(dev).rsplit(":", 1)[1]
    with Ingest("dev", "--port", port, "--data-dir", "other", directory=tmp_path) as second:
        assert second.process.wait(20) == 2
        assert f"cannot listen on 127.0.0.1:{port}" in second.text()
