"""`ingest doctor` as a command, on the embedded default."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import run_ingest


def run_doctor(directory: Path, *arguments: str, **env: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run the command; return its exit code, its findings, and the text that it printed."""
    process: subprocess.CompletedProcess[str] = run_ingest("doctor", "--json", *arguments, env=env, directory=directory)
    return process.returncode, json.loads(process.stdout), process.stdout


def test_embedded_default_passes_strict_before_the_first_start(tmp_path: Path) -> None:
    assert run_doctor(tmp_path, "--strict")[0] == 0


def test_damaged_queue_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".ingest").mkdir()
    (tmp_path / ".ingest" / "queue.db").write_bytes(b"not a database" * 100)
    code, findings, _ = run_doctor(tmp_path)
    assert code == 1
    assert any("queue.db is damaged" in finding["what"] for finding in findings)


def test_misspelt_setting_is_a_warning_that_fails_only_with_strict(tmp_path: Path) -> None:
    code, findings, _ = run_doctor(tmp_path, INGEST_BROKER_ULR="x")
    assert code == 0
    assert any("INGEST_BROKER_ULR is not a setting" in finding["what"] for finding in findings)
    assert run_doctor(tmp_path, "--strict", INGEST_BROKER_ULR="x")[0] == 1


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"INGEST_PORT": "70000"}, "INGEST_PORT"),
        ({"INGEST_PORT": "70000"}, "Not checked: libraries, broker, store"),
        ({"INGEST_BROKER_URL": "amqp://h/"}, "INGEST_STORE_URL is not set: with RabbitMQ, customers and keys are in"),
        ({"INGEST_STORE_URL": "redis://h/0"}, "store"),
        ({"INGEST_BROKER_URL": "http://user:topsecret@h/"}, "INGEST_BROKER_URL must begin with"),
        ({"INGEST_BROKER_URL": "amqp://user:topsecret@203.0.113.1:1/"}, "INGEST_BROKER_URL: plain text"),
    ],
)
def test_invalid_setting_is_a_finding_that_hides_the_password(tmp_path: Path, env: dict[str, str], text: str) -> None:
    code, findings, output = run_doctor(tmp_path, **env)
    assert code == 1
    assert any(text in finding["what"] + finding["area"] for finding in findings)
    assert "topsecret" not in output
