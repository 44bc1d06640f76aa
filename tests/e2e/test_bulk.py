"""`asg-submit` as a process against `ingest dev`: after every interruption, each task is accepted exactly once."""

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


def write_tasks(path: Path, tasks: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(spec) + "\n" for spec in tasks))
    return path


class SubmitProcess:
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

    def wait(self) -> tuple[int, dict[str, int], str]:
        """Wait for the end; return the exit code, the JSON result and the standard error."""
        stdout, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, json.loads(stdout) if stdout else {}, stderr


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Ingest]:
    with start(tmp_path, "--api-key", "k") as running:
        yield running


def accepted_data_urls(directory: Path, expected: int) -> Counter[str]:
    """Count the task.accepted events by data_url, after `expected` events are out and no batch is queued."""
    database = sqlite3.connect(directory / ".ingest" / "queue.db")
    sql = "SELECT body FROM message WHERE queue = 'consensus.tasks'"
    events: list[tuple[bytes]] = []

    def all_out() -> bool:
        (queued,) = database.execute("SELECT count(*) FROM message WHERE queue = 'ingest.batches'").fetchone()
        events[:] = database.execute(sql).fetchall()
        return queued == 0 and len(events) >= expected

    wait_until(all_out, f"{expected} events", 40)
    database.close()
    return Counter(json.loads(body)["data"]["data_url"] for (body,) in events)


def journal_length(path: Path) -> int:
    """Return the number of lines in the journal, which has one per finished chunk."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("keep_journal", [True, False], ids=["journal", "no journal"])
def test_rerun_after_sigkill_submits_every_task_exactly_once(dev: Ingest, tmp_path: Path, keep_journal: bool) -> None:
    """Two runs are killed and the third finishes. Without the journal, the gateway recognizes the tasks."""
    file = write_tasks(tmp_path / "tasks.jsonl", [task(number) for number in range(LINES)])
    journal = tmp_path / "tasks.jsonl.journal"
    for minimum in (2, 5):
        run = SubmitProcess(dev, file, "--chunk", "400", "--concurrency", "2")
        wait_until(lambda: journal_length(journal) >= minimum, "some chunks", 30)  # noqa: B023 - called within the loop
        run.process.kill()
        assert run.wait()[0] == -signal.SIGKILL
        if not keep_journal:
            journal.unlink()
    code, result, _ = SubmitProcess(dev, file, "--concurrency", "2").wait()
    assert code == 0
    assert result["accepted"] + result["replayed"] + result["skipped"] == LINES
    assert accepted_data_urls(tmp_path, LINES) == {f"https://a.example/{number}": 1 for number in range(LINES)}


def test_rerun_after_sigint_submits_only_the_remaining_tasks(dev: Ingest, tmp_path: Path) -> None:
    """After SIGINT, the first run finishes what is in flight, says how to continue, and exits with 130."""
    file = write_tasks(tmp_path / "tasks.jsonl", [task(number) for number in range(LINES)])
    run = SubmitProcess(dev, file, "--chunk", "100", "--concurrency", "1")
    wait_until(lambda: journal_length(tmp_path / "tasks.jsonl.journal") >= 2, "some chunks", 30)
    run.process.send_signal(signal.SIGINT)
    code, interrupted, stderr = run.wait()
    assert code == 130
    assert "run the same command again" in stderr
    assert 200 <= interrupted["accepted"] < LINES
    code, rerun, _ = SubmitProcess(dev, file, "--chunk", "100").wait()
    assert code == 0
    assert (rerun["skipped"], rerun["accepted"]) == (interrupted["accepted"], LINES - interrupted["accepted"])
    assert set(accepted_data_urls(tmp_path, LINES).values()) == {1}


def test_invalid_lines_are_reported_and_accepted_after_correction(dev: Ingest, tmp_path: Path) -> None:
    """The first run accepts all valid lines. The corrected file is reordered and has nine lines fewer."""
    tasks = [task(number) for number in range(1500)]
    tasks[3]["type"] = "mood"  # the command itself detects this error
    tasks[1200]["data_url"] = "https://user:password@a.example/"  # the gateway detects this one and the next
    tasks[1201]["callback_url"] = "https://not.registered.example/"
    file = write_tasks(tmp_path / "tasks.jsonl", tasks)
    code, result, _ = SubmitProcess(dev, file).wait()
    assert (code, result["accepted"], result["refused"]) == (1, 1497, 3)
    errors = [json.loads(line) for line in (tmp_path / "tasks.jsonl.errors.jsonl").read_text().splitlines()]
    assert [(error["line"], error["errors"][0]["field"], error["task"]) for error in errors] == [
        (4, "type", tasks[3]),
        (1201, "data_url", tasks[1200]),
        (1202, "callback_url", tasks[1201]),
    ]
    corrected = [task(1200), *tasks[10:1200], task(1201), *tasks[1202:], task(3)]
    code, result, _ = SubmitProcess(dev, write_tasks(file, corrected), "--ids", tmp_path / "ids").wait()
    assert code == 0
    assert result["refused"] == 0
    assert not (tmp_path / "tasks.jsonl.errors.jsonl").exists()
    ids = [json.loads(line)["task_id"] for line in (tmp_path / "ids").read_text().splitlines()]
    assert len(set(ids)) == len(corrected)
    assert accepted_data_urls(tmp_path, 1500) == {f"https://a.example/{number}": 1 for number in range(1500)}


def test_exhausted_quota_stops_the_run_and_a_rerun_with_more_quota_finishes(tmp_path: Path) -> None:
    file = write_tasks(tmp_path / "tasks.jsonl", [task(number) for number in range(1000)])
    with start(tmp_path, "--api-key", "k", "--quota", "350") as dev:
        code, result, stderr = SubmitProcess(dev, file, "--chunk", "100", "--concurrency", "1").wait()
        assert (code, result["accepted"]) == (4, 300)
        assert f"the gateway at {address(dev)} answers 403: quota exhausted. The quota is monthly: the next" in stderr
        assert "run the same command again to continue. It continues with line 301; nothing is submitted" in stderr
        dev.stop()
    with start(tmp_path, "--api-key", "k", "--quota", "1000") as dev:
        code, result, _ = SubmitProcess(dev, file, "--chunk", "100").wait()
        assert (code, result["accepted"]) == (0, 700)
        assert set(accepted_data_urls(tmp_path, 1000).values()) == {1}


def test_csv_from_standard_input_is_submitted_without_a_journal(dev: Ingest, tmp_path: Path) -> None:
    rows = "".join(f"sentiment,https://a.example/{number},Mood?,good|bad\n" for number in range(1500))
    run = SubmitProcess(
        dev,
        *("-", "--format", "csv", "--errors", tmp_path / "errors"),
        *("--callback-url", "https://example.com/hooks/asg"),
        stdin=subprocess.PIPE,
    )
    assert run.process.stdin is not None
    run.process.stdin.write(f"type,data_url,question,options\n{rows}")
    run.process.stdin.close()
    run.process.stdin = None
    code, result, _ = run.wait()
    assert (code, result["accepted"]) == (0, 1500)
    assert set(accepted_data_urls(tmp_path, 1500).values()) == {1}
    assert list(tmp_path.glob("*.journal")) == []


def run_shell(dev: Ingest, command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `submit` is asg-submit for `dev`."""
    submit = f'submit() {{ {sys.executable} -m asg_gateway --base-url {address(dev)} "$@"; }}'
    env = {**os.environ, "ASG_API_KEY": "k"}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {submit}; {command}"],
        env=env,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
        ("submit tasks.jsonl 2>&-", 0, ""),
        ("submit tasks.jsonl 2>/dev/full", 0, ""),
        ("submit tasks.jsonl --json >&-", 2, "--json needs standard output, but it is closed"),
        ("submit tasks.jsonl --json >/dev/full", 5, "cannot write the result to standard output: No space left"),
        ("submit tasks.jsonl --json | (exec <&-; sleep 5)", 5, "cannot write the result to standard output: Broken"),
        ("submit tasks.jsonl --ids /dev/full", 5, "stopped: cannot write /dev/full: No space left on device"),
        ("submit - <&-", 2, "standard input is closed"),
        ("submit --help | (exec <&-; sleep 5)", 0, ""),
        ("HTTP_PROXY=http:// NO_PROXY= submit tasks.jsonl", 2, "HTTP_PROXY is not the URL of a proxy"),
        ("HTTP_PROXY=socks5://127.0.0.1:1 NO_PROXY= submit tasks.jsonl", 2, "HTTP_PROXY is a SOCKS proxy"),
        ("HTTP_PROXY=http://127.0.0.1:1 NO_PROXY=fd00::/8,127.0.0.1 submit tasks.jsonl", 0, "1 accepted"),
    ],
)
def test_exit_code_is_1_only_for_refused_lines(
    dev: Ingest, tmp_path: Path, command: str, code: int, stderr: str
) -> None:
    """Broken streams, full disks and wrong proxies have other codes and one sentence without a traceback."""
    write_tasks(tmp_path / "tasks.jsonl", [task(1)])
    result = run_shell(dev, command, tmp_path)
    assert (result.returncode, "Traceback" in result.stderr) == (code, False), result.stderr
    assert stderr in result.stderr
    assert "Exception ignored" not in result.stderr


def test_one_bad_csv_row_is_reported_and_the_others_are_accepted(dev: Ingest, tmp_path: Path) -> None:
    rows = [f"sentiment,https://a.example/{number},Q?,a|b" for number in range(700)]
    rows[600] = 'sentiment,https://a.example/600,"Q" ?,a|b'
    file = tmp_path / "tasks.csv"
    file.write_text("\n".join(["type,data_url,question,options", *rows]))
    code, result, _ = SubmitProcess(dev, file).wait()
    assert (code, result["accepted"], result["refused"]) == (1, 699, 1)
    (error,) = map(json.loads, (tmp_path / "tasks.csv.errors.jsonl").read_text().splitlines())
    assert (error["line"], error["text"]) == (602, rows[600])


def test_replays_are_counted_apart_from_new_tasks_even_in_one_request(dev: Ingest, tmp_path: Path) -> None:
    """The second run has other chunks, each with old and new tasks."""
    file = write_tasks(tmp_path / "tasks.jsonl", [task(number) for number in range(0, 1000, 2)])
    assert SubmitProcess(dev, file, "--no-journal").wait()[1]["accepted"] == 500
    write_tasks(file, [task(number) for number in range(1000)])
    code, result, stderr = SubmitProcess(dev, file, "--no-journal", "--chunk", "300").wait()
    assert (code, result["accepted"], result["replayed"]) == (0, 500, 500)
    assert "500 accepted, 500 replayed (accepted before)" in stderr


def test_run_ends_while_standard_input_stays_open(tmp_path: Path) -> None:
    """The quota is exhausted before the producer of the tasks is done."""
    with start(tmp_path, "--api-key", "k", "--quota", "150") as dev:
        run = SubmitProcess(dev, "-", "--chunk", "100", "--errors", tmp_path / "errors", stdin=subprocess.PIPE)
        assert run.process.stdin is not None
        run.process.stdin.write("".join(json.dumps(task(number)) + "\n" for number in range(250)))
        run.process.stdin.flush()
        try:
            assert run.process.wait(20) == 4
        finally:
            run.process.kill()
            run.wait()


def test_wrong_api_key_or_webhook_stops_the_run_with_exit_code_2(dev: Ingest, tmp_path: Path) -> None:
    """The error is that of the gateway, and it does not show the API key."""
    file = write_tasks(tmp_path / "tasks.jsonl", [task(number) for number in range(10)])
    code, _, stderr = SubmitProcess(dev, file, "--callback-url", "https://not.registered.example/").wait()
    assert (code, "callback_url is not one of your registered webhook URLs" in stderr) == (2, True)
    (tmp_path / "key").write_text("wrong-key")
    code, _, stderr = SubmitProcess(dev, file, "--api-key-file", tmp_path / "key").wait()
    assert (code, "unknown or revoked" in stderr, "wrong-key" in stderr) == (2, True, False)


def test_unreachable_gateway_ends_the_run_after_the_patience(dev: Ingest, tmp_path: Path) -> None:
    """The exit code is 3, and the error says how to continue."""
    file = write_tasks(tmp_path / "tasks.jsonl", [task(1)])
    run = SubmitProcess(dev, file, "--patience", "1")
    assert run.wait()[0] == 0
    dev.stop()
    code, _, stderr = SubmitProcess(dev, write_tasks(file, [task(2)]), "--patience", "1").wait()
    assert code == 3
    assert f"no answer from {address(dev)}: " in stderr
    assert "run the same command again" in stderr
