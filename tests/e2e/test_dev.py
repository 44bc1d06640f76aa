"""`ingest dev` runs the whole service in one process and stores everything in files."""

import re
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from asg_gateway import ASGGatewayClient, QuotaExhaustedError

from tests.e2e.contract import BATCH_CURL, TASK, TASK_CURL, curl
from tests.e2e.processes import Ingest
from tests.servers.process import wait_until

READY = "Ctrl-C stops it"


def address(dev: Ingest) -> str:
    """Return the base URL that the process has printed."""
    match = re.search(r"ready at (http://\S+)", dev.text())
    assert match
    return match[1]


def start(directory: Path, *options: str) -> Ingest:
    dev = Ingest("dev", "--port", "0", *options, directory=directory)
    dev.wait_for(READY)
    return dev


def count_events(directory: Path) -> int:
    """Return how many different events `consensus.tasks` has."""
    database = sqlite3.connect(directory / ".ingest" / "queue.db")
    try:
        sql = "SELECT count(DISTINCT message_id) FROM message WHERE queue = 'consensus.tasks'"
        return int(database.execute(sql).fetchone()[0])
    finally:
        database.close()


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Ingest]:
    with start(tmp_path, "--api-key", "my-key", "--quota", "5", "--webhook", "https://hooks.example/x") as running:
        yield running


def test_printed_curl_line_submits_a_task_and_then_replays_it(tmp_path: Path) -> None:
    with start(tmp_path) as dev:
        line = next(line for line in dev.text().splitlines() if line.startswith("curl"))
        first = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=True).stdout
        assert '"status":"pending"' in first
        task_id = first.split('"')[3]
        dev.wait_for(f"task.accepted        {task_id}  dev\n")
        replay = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=True).stdout
        assert '"idempotent":true' in replay
        assert dev.stop() == 0


def test_quiet_dev_prints_no_events(tmp_path: Path) -> None:
    with start(tmp_path, "--api-key", "my-key", "--quiet") as dev:
        curl(TASK_CURL, address(dev), "my-key")
        wait_until(lambda: count_events(tmp_path) == 1, "the event", 10)
        assert dev.stop() == 0
        assert "task.accepted" not in dev.text()


def test_curl_lines_of_the_contract_get_exactly_its_answer_keys(dev: Ingest) -> None:
    first = curl(TASK_CURL, address(dev), "my-key")
    assert set(first) == {"task_id", "status", "created_at"}
    replay = curl(TASK_CURL, address(dev), "my-key")
    assert replay == first | {"idempotent": True}
    batch = curl(BATCH_CURL, address(dev), "my-key")
    assert set(batch) == {"batch_id", "task_count", "status"}
    assert (batch["task_count"], batch["status"]) == (2, "accepted")


def test_quota_and_webhook_options_are_enforced(dev: Ingest) -> None:
    """The fixture passes `--quota 5` and one `--webhook`."""
    with ASGGatewayClient("my-key", base_url=address(dev)) as client:
        client.submit_batch([TASK] * 4, callback_url="https://hooks.example/x")
        with pytest.raises(QuotaExhaustedError, match="quota exhausted"):
            client.submit_batch([TASK] * 2)
        first = client.submit_task(
            task_type="sentiment",
            data_url="https://a.example",
            label_spec=TASK["label_spec"],
            idempotency_key="k",
        )
        # The quota is exhausted now, but a replay needs none.
        replay = client.submit_task(
            task_type="sentiment",
            data_url="https://a.example",
            label_spec=TASK["label_spec"],
            idempotency_key="k",
        )
        assert replay.idempotent
        assert replay.task_id == first.task_id
    answer = httpx.post(
        f"{address(dev)}/v1/tasks",
        json=TASK | {"callback_url": "https://evil.example"},
        headers={"Authorization": "Bearer my-key"},
    )
    assert answer.json() == {"error": "callback_url is not one of your registered webhook URLs"}


def test_restart_keeps_the_api_key_and_the_tasks(tmp_path: Path) -> None:
    """Only its owner may read the file with the key."""
    with start(tmp_path) as dev:
        key_file = tmp_path / ".ingest" / "api_key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        key = key_file.read_text().strip()
        first = curl(TASK_CURL, address(dev), key)
        assert dev.stop() == 0
    with start(tmp_path) as dev:
        assert curl(TASK_CURL, address(dev), key) == first | {"idempotent": True}


@pytest.mark.parametrize("source", ["environment", "file"])
def test_given_api_key_is_accepted_and_not_in_the_list_of_processes(tmp_path: Path, source: str) -> None:
    (tmp_path / "key").write_text("my-key\n")
    options, env = (["--api-key-file", "key"], {}) if source == "file" else ([], {"INGEST_DEV_API_KEY": "my-key"})
    with Ingest("dev", "--port", "0", *options, directory=tmp_path, env=env) as dev:
        dev.wait_for(READY)
        assert curl(TASK_CURL, address(dev), "my-key")["status"] == "pending"
        assert b"my-key" not in Path(f"/proc/{dev.process.pid}/cmdline").read_bytes()
        assert "unknown_setting" not in dev.text()
    assert not (tmp_path / ".ingest" / "api_key").exists()


def test_empty_file_with_the_api_key_is_written_again(tmp_path: Path) -> None:
    """A start on a full disk may have left it."""
    key_file = tmp_path / ".ingest" / "api_key"
    key_file.parent.mkdir()
    key_file.touch()
    with start(tmp_path) as dev:
        assert f"API key: {key_file.read_text().strip()}\n" in dev.text()
        assert key_file.read_text().startswith("asg_live_")


def test_file_with_the_api_key_that_cannot_be_read_is_reported_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / ".ingest" / "api_key").mkdir(parents=True)
    with Ingest("dev", "--port", "0", directory=tmp_path) as dev:
        assert dev.process.wait(20) == 2
        assert "cannot read or write .ingest/api_key: Is a directory" in dev.text()
        assert "Traceback" not in dev.text()


def test_batch_answered_202_before_sigkill_is_emitted_after_the_restart(tmp_path: Path) -> None:
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
        batch = httpx.get(url, headers={"Authorization": "Bearer k"}).json()
        assert batch["task_ids"] == answer.json()["task_ids"]
        dev.stop()
    wait_until(lambda: count_events(tmp_path) >= 1000, "1,000 events", 10)


def test_second_process_on_the_same_files_exits_with_2_and_the_first_continues(dev: Ingest, tmp_path: Path) -> None:
    with Ingest("dev", "--port", "0", directory=tmp_path) as second:
        assert second.process.wait(20) == 2
        assert "is in use by another process" in second.text()
        assert "Traceback" not in second.text()
    assert httpx.get(f"{address(dev)}/healthz").status_code == 200


def test_port_in_use_is_reported_with_exit_code_2(dev: Ingest, tmp_path: Path) -> None:
    port = address(dev).rsplit(":", 1)[1]
    with Ingest("dev", "--port", port, "--data-dir", "other", directory=tmp_path) as second:
        assert second.process.wait(20) == 2
        assert f"cannot listen on 127.0.0.1:{port}" in second.text()
