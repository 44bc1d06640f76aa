"""`asg-submit` as a process against `ingest dev`: nothing twice, nothing missing, whatever interrupts it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Ingest
from tests.e2e.test_dev import address, start
from tests.servers.process import wait_until

LINES = 12_000


def task(number: int, **changes: Any) -> dict[str, Any]:
    spec = {"question": "Animal?", "options": ["cat", "dog"]}
    return {"type": "image_classification", "data_url": f"https://a.example/{number}", "label_spec": spec} | changes


def write(path: Path, tasks: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in tasks))
    return path


class Submit:
    """One `asg-submit` process."""

    def __init__(self, dev: Ingest, *arguments: str | Path, stdin: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asg_gateway", *map(str, arguments), "--base-url", address(dev), "--json"],
            env={**os.environ, "ASG_API_KEY": "k"},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, dict[str, int], str]:
        """Exit code, result, what it said."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, json.loads(out) if out else {}, err


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Ingest]:
    with start(tmp_path, "--api-key", "k") as running:
        yield running


def emitted(directory: Path, expected: int) -> Counter[str]:
    """How often each data_url was accepted, once `expected` events are out and no submission is left."""
    queue = sqlite3.connect(directory / ".ingest" / "queue.db")
    sql = "SELECT body FROM message WHERE queue = 'consensus.tasks'"
    found: list[tuple[bytes]] = []

    def all_out() -> bool:
        (left,) = queue.execute("SELECT count(*) FROM message WHERE queue = 'ingest.batches'").fetchone()
        found[:] = queue.execute(sql).fetchall()
        return left == 0 and len(found) >= expected

    wait_until(all_out, f"{expected} events", 40)
    queue.close()
    return Counter(json.loads(body)["data"]["data_url"] for (body,) in found)


def journalled(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("journal", [True, False], ids=["journal", "no journal"])
def test_killed_in_the_middle_and_run_again(dev: Ingest, tmp_path: Path, journal: bool) -> None:
    """SIGKILL, twice; the third run ends it. With the journal lost too, no task is accepted twice."""
    file = write(tmp_path / "tasks.jsonl", [task(number) for number in range(LINES)])
    notes = tmp_path / "tasks.jsonl.journal"
    for least in (2, 5):
        run = Submit(dev, file, "--chunk", "400", "--concurrency", "2")
        wait_until(lambda: journalled(notes) >= least, "some chunks", 30)  # noqa: B023 - called within the loop
        run.process.kill()
        assert run.end()[0] == -signal.SIGKILL
        if not journal:
            notes.unlink()
    code, result, _ = Submit(dev, file, "--concurrency", "2").end()
    assert code == 0
    assert result["accepted"] + result["replayed"] + result["skipped"] == LINES
    assert emitted(tmp_path, LINES) == {f"https://a.example/{number}": 1 for number in range(LINES)}


def test_interrupted_and_run_again(dev: Ingest, tmp_path: Path) -> None:
    """SIGINT finishes what is in flight, says how to go on, exit code 130; then the rest is submitted."""
    file = write(tmp_path / "tasks.jsonl", [task(number) for number in range(LINES)])
    run = Submit(dev, file, "--chunk", "100", "--concurrency", "1")
    wait_until(lambda: journalled(tmp_path / "tasks.jsonl.journal") >= 2, "some chunks", 30)
    run.process.send_signal(signal.SIGINT)
    code, first, told = run.end()
    assert code == 130
    assert "run the same command again" in told
    assert 200 <= first["accepted"] < LINES
    code, rest, _ = Submit(dev, file, "--chunk", "100").end()
    assert (code, rest["skipped"], rest["accepted"]) == (0, first["accepted"], LINES - first["accepted"])
    assert set(emitted(tmp_path, LINES).values()) == {1}


def test_bad_lines_are_named_and_mended(dev: Ingest, tmp_path: Path) -> None:
    """All others are accepted; mended, moved and with lines taken away, only what is new is accepted."""
    tasks = [task(number) for number in range(1500)]
    tasks[3]["type"] = "mood"  # found by the command itself
    tasks[1200]["data_url"] = "https://user:password@a.example/"  # found by the gateway
    tasks[1201]["callback_url"] = "https://not.registered.example/"
    file = write(tmp_path / "tasks.jsonl", tasks)
    code, result, _ = Submit(dev, file).end()
    assert (code, result["accepted"], result["refused"]) == (1, 1497, 3)
    errors = [json.loads(line) for line in (tmp_path / "tasks.jsonl.errors.jsonl").read_text().splitlines()]
    assert [(each["line"], each["errors"][0]["field"], each["task"]) for each in errors] == [
        (4, "type", tasks[3]),
        (1201, "data_url", tasks[1200]),
        (1202, "callback_url", tasks[1201]),
    ]
    mended = [task(1200), *tasks[10:1200], task(1201), *tasks[1202:], task(3)]
    code, result, _ = Submit(dev, write(file, mended), "--ids", tmp_path / "ids").end()
    assert code == 0
    assert result["refused"] == 0
    assert not (tmp_path / "tasks.jsonl.errors.jsonl").exists()
    ids = [json.loads(line)["task_id"] for line in (tmp_path / "ids").read_text().splitlines()]
    assert len(set(ids)) == len(mended)
    assert emitted(tmp_path, 1500) == {f"https://a.example/{number}": 1 for number in range(1500)}


def test_the_quota_stops_it_and_can_be_resumed(tmp_path: Path) -> None:
    """Exit code 4 with what was accepted; with more quota the rest is."""
    file = write(tmp_path / "tasks.jsonl", [task(number) for number in range(1000)])
    with start(tmp_path, "--api-key", "k", "--quota", "350") as dev:
        code, result, told = Submit(dev, file, "--chunk", "100", "--concurrency", "1").end()
        assert (code, result["accepted"]) == (4, 300)
        assert "quota exhausted" in told
        dev.stop()
    with start(tmp_path, "--api-key", "k", "--quota", "1000") as dev:
        code, result, _ = Submit(dev, file, "--chunk", "100").end()
        assert (code, result["accepted"]) == (0, 700)
        assert set(emitted(tmp_path, 1000).values()) == {1}


def test_csv_from_standard_input(dev: Ingest, tmp_path: Path) -> None:
    """Piped, without a journal, with one webhook for all."""
    rows = "".join(f"sentiment,https://a.example/{number},Mood?,good|bad\n" for number in range(1500))
    run = Submit(
        dev,
        *("-", "--format", "csv", "--errors", tmp_path / "errors"),
        *("--callback-url", "https://example.com/hooks/asg"),
        stdin=subprocess.PIPE,
    )
    assert run.process.stdin is not None
    run.process.stdin.write(f"type,data_url,question,options\n{rows}")
    run.process.stdin.close()
    run.process.stdin = None
    code, result, _ = run.end()
    assert (code, result["accepted"]) == (0, 1500)
    assert set(emitted(tmp_path, 1500).values()) == {1}
    assert list(tmp_path.glob("*.journal")) == []


def test_a_wrong_key_and_a_wrong_webhook_stop_it(dev: Ingest, tmp_path: Path) -> None:
    """Exit code 2 and the gateway's words, not a report of a thousand lines; the key is not shown."""
    file = write(tmp_path / "tasks.jsonl", [task(number) for number in range(10)])
    code, _, told = Submit(dev, file, "--callback-url", "https://not.registered.example/").end()
    assert (code, "callback_url is not one of your registered webhook URLs" in told) == (2, True)
    (tmp_path / "key").write_text("wrong-key")
    code, _, told = Submit(dev, file, "--api-key-file", tmp_path / "key").end()
    assert (code, "unknown or revoked" in told, "wrong-key" in told) == (2, True, False)


def test_nobody_there(dev: Ingest, tmp_path: Path) -> None:
    """Exit code 3 after `--patience`, and what to do."""
    file = write(tmp_path / "tasks.jsonl", [task(1)])
    run = Submit(dev, file, "--patience", "1")
    assert run.end()[0] == 0
    dev.stop()
    code, _, told = Submit(dev, write(file, [task(2)]), "--patience", "1").end()
    assert code == 3
    assert "run the same command again" in told
