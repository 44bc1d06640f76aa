"""`ingest dev` while its disk is full or its files are locked: it answers 503, loses nothing, and continues."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.contract import TASK
from tests.e2e.test_dev import address, start
from tests.servers.process import wait_until

TASKS = 300


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Write a file until nothing more fits; return it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


class Client:
    """Submits tasks with keys, and remembers those that were accepted."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"Authorization": "Bearer k"}, timeout=30)
        self._number = 0
        self.accepted: set[str] = set()

    def submit(self) -> int:
        """Submit a new task; return the status."""
        self._number += 1
        answer = self._client.post("/v1/tasks", json=TASK | {"idempotency_key": f"key-{self._number}"})
        if answer.status_code == 202:
            self.accepted.add(answer.json()["task_id"])
        return answer.status_code

    def ready(self) -> bool:
        return self._client.get("/readyz").status_code == 200

    def healthy(self) -> bool:
        return self._client.get("/healthz").status_code == 200


def emitted(queue_file: Path) -> dict[str, set[str]]:
    """The tasks in the events of `consensus.tasks`, each with the ids of its events."""
    database = sqlite3.connect(queue_file, timeout=10)
    try:
        sql = """SELECT json_extract(body, '$.data.task_id'), json_extract(body, '$.id')
                 FROM message WHERE queue = 'consensus.tasks'"""
        events: dict[str, set[str]] = {}
        for task_id, event_id in database.execute(sql):
            events.setdefault(task_id, set()).add(event_id)
        return events
    finally:
        database.close()


def test_full_disk_makes_dev_answer_503_until_there_is_space_again(small_disk: Path, tmp_path: Path) -> None:
    """Its output goes to the full disk, too."""
    data = small_disk / "data"
    with start(small_disk, "--api-key", "k", "--data-dir", str(data)) as dev:
        client = Client(address(dev))
        assert client.submit() == 202
        filler = fill(small_disk)
        statuses = [client.submit() for _ in range(TASKS)]
        assert statuses[-1] == 503
        assert set(statuses) <= {202, 503}
        time.sleep(3)  # the worker and the health checks meet the full disk, too
        assert client.healthy()
        assert not client.ready()
        filler.unlink()
        wait_until(lambda: client.submit() == 202, "space", 20)
        assert dev.process.poll() is None
        wait_until(lambda: client.accepted <= emitted(data / "queue.db").keys(), "all accepted tasks", 20)
        # A worker that could not settle a task publishes its event again, under the same id.
        assert {len(event_ids) for event_ids in emitted(data / "queue.db").values()} == {1}
        assert dev.stop() == 0


@pytest.mark.parametrize("name", ["queue.db", "store.db"])
def test_lock_of_another_process_makes_dev_answer_503_until_it_is_released(name: str, tmp_path: Path) -> None:
    with start(tmp_path, "--api-key", "k") as dev:
        client = Client(address(dev))
        assert client.submit() == 202
        lock = sqlite3.connect(tmp_path / ".ingest" / name, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        begin = time.monotonic()
        assert client.submit() == 503
        assert time.monotonic() - begin < 15
        time.sleep(6)  # the worker gives up waiting for the lock, too
        assert client.healthy()
        lock.execute("ROLLBACK")
        lock.close()
        wait_until(lambda: client.submit() == 202, "lock", 20)
        wait_until(
            lambda: client.accepted <= emitted(tmp_path / ".ingest" / "queue.db").keys(), "all accepted tasks", 20
        )
        assert dev.process.poll() is None
        assert "Traceback" not in dev.text()
        assert dev.stop() == 0
