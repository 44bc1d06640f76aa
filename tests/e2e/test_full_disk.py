"""Commands whose output does not fit on the disk say so in one sentence."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from tests.contract.test_dead_letters import rejected_message

LETTERS = 600


async def fill(directory: Path) -> None:
    broker = await EmbeddedBroker.open(directory / ".ingest" / "queue.db")
    await (await broker.publisher()).publish([rejected_message(i) for i in range(LETTERS)])
    await broker.close()


def run(shell: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", shell.replace("ingest", f"{sys.executable} -m ingest")]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)


async def test_export_to_a_full_disk_says_how_many_dead_letters_the_file_has(tmp_path: Path) -> None:
    await fill(tmp_path)
    done = run("ulimit -f 128; ingest dlq export dead.jsonl", tmp_path)  # KiB; SQLite's own files are smaller
    said = re.fullmatch(
        r"ingest: cannot write dead\.jsonl, which has only the first (\d+) dead letters: File too large\n", done.stderr
    )
    assert said is not None, done.stderr
    assert 0 < int(said[1]) <= (tmp_path / "dead.jsonl").read_bytes().count(b"\n") < LETTERS
    assert done.returncode == 1


async def test_export_to_a_full_standard_output_is_one_sentence(tmp_path: Path) -> None:
    await fill(tmp_path)
    done = run("ingest dlq export - > /dev/full", tmp_path)
    message = "ingest: cannot write the output, which has only the first 0 dead letters: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.parametrize("command", ["dlq list", "customer list --json", "settings"])
async def test_full_standard_output_is_one_sentence(command: str, tmp_path: Path) -> None:
    await fill(tmp_path)
    done = run(f"ingest {command} > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "ingest: cannot write the output: No space left on device\n")


async def test_export_to_a_reader_that_ends_is_quiet(tmp_path: Path) -> None:
    await fill(tmp_path)
    done = run("ingest dlq export - | head -c 9", tmp_path)
    assert "ingest:" not in done.stderr
    assert "Traceback" not in done.stderr


def test_status_names_the_file_that_it_cannot_draw(tmp_path: Path) -> None:
    done = run("ingest status --svg missing/status.svg", tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "ingest: cannot write missing/status.svg: No such file or directory\n",
    )
