"""`ingest dlq` on a terminal: the question of a purge, progress, and Ctrl-C."""

import json
import re
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain.errors import Reason
from ingest.domain.messages import Message
from tests.contract.test_dead_letters import DeadLetterHarness, harness, rejected_message
from tests.e2e.processes import run_ingest
from tests.servers import RabbitServer
from tests.support.terminal import Terminal

__all__ = ["harness"]

COUNT = 600
ENDINGS = (0, 130, -2)
"""Exit codes of a command that may have been finished when Ctrl-C came; -2: even Python was."""


def messages() -> list[Message]:
    """A third is invalid."""
    return [rejected_message(i, Reason.QUOTA_EXHAUSTED if i % 3 else Reason.INVALID) for i in range(COUNT)]


async def fill(directory: Path) -> dict[str, str]:
    """Put dead letters into the embedded queue; return the settings of commands."""
    broker = await EmbeddedBroker.open(directory / "queue.db")
    await (await broker.publisher()).publish(messages())
    await broker.close()
    return {"INGEST_DATA_DIR": str(directory)}


@pytest.mark.parametrize("elsewhere", ["", "stdout", "stderr"])
async def test_question_of_a_purge_stays_visible_and_counts_by_reason(tmp_path: Path, elsewhere: str) -> None:
    env = await fill(tmp_path)
    with Terminal("dlq", "purge", "--all", directory=tmp_path, env=env, elsewhere=elsewhere) as terminal:
        terminal.wait_for(re.escape("Delete 600 dead letters (400 quota_exhausted, 200 invalid) for good? [y/N]: "))
        assert terminal.read(0.5) == ""
        terminal.type("y\n")
        assert terminal.end() == 0
        assert ("purged 600 of 600" in terminal.text) == (elsewhere != "stdout")
    assert json.loads(run_ingest("dlq", "list", "--json", env=env, directory=tmp_path).stdout) == []


@pytest.mark.parametrize("answer", ["n\n", "\n", "maybe\n", "\x04", "interrupt"])
async def test_purge_deletes_nothing_without_a_yes(tmp_path: Path, answer: str) -> None:
    env = await fill(tmp_path)
    with Terminal("dlq", "purge", "--all", directory=tmp_path, env=env) as terminal:
        terminal.wait_for("y/N.: ")
        if answer == "interrupt":
            terminal.interrupt()
        else:
            terminal.type(answer)
        assert terminal.end() == (130 if answer == "interrupt" else 0)
        assert "purged 0 of 600" in terminal.text
    listed = json.loads(run_ingest("dlq", "list", "--json", env=env, directory=tmp_path).stdout)
    assert sum(group["count"] for group in listed) == COUNT


async def test_progress_of_a_redrive_counts_what_was_redriven(tmp_path: Path) -> None:
    """The queue is read faster than it is redriven."""
    env = await fill(tmp_path)
    arguments = ("dlq", "redrive", "--reason", "invalid", "--rate", "20/s")
    with Terminal(*arguments, directory=tmp_path, env=env) as terminal:
        terminal.wait_for("redriven [1-9][0-9], read")
        terminal.interrupt()
        assert terminal.end() == 130
    shown = [(int(done), int(handled)) for done, handled in re.findall(r"redriven (\d+), read (\d+)", terminal.text)]
    assert all(done <= handled <= 3 * done + 100 for done, handled in shown), shown
    done = int(re.findall(r"redrove (\d+) of", terminal.text)[-1])
    assert done == shown[-1][0]


@pytest.fixture
def env(harness: DeadLetterHarness, request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of commands on the broker of `harness`."""
    if not harness.url:
        return {"INGEST_DATA_DIR": str(harness.path.parent)}
    server: RabbitServer = request.getfixturevalue("rabbitmq")
    management = server.management_url.replace("//", "//guest:guest@")
    return {"INGEST_BROKER_URL": harness.url, "INGEST_MANAGEMENT_URL": management}


async def test_interrupted_redrive_tells_exactly_what_is_done(
    harness: DeadLetterHarness, env: dict[str, str], tmp_path: Path
) -> None:
    await harness.publish(messages())
    arguments = ("dlq", "redrive", "--reason", "invalid", "--rate", "30/s", "--json")
    with Terminal(*arguments, directory=tmp_path, env=env, elsewhere="stdout") as terminal:
        terminal.wait_for("redriven [1-9][0-9], read")
        terminal.interrupt()
        assert terminal.end() == 130
        report = json.loads(terminal.file.read_text())
    done = report["redriven"]["invalid"]
    assert report["ending"] == "interrupted"
    assert 10 <= done < COUNT // 3
    assert report["matched"] == done + report["not_tried"]
    assert await harness.depth("ingest.tasks") == done
    remaining = await harness.message_ids()
    assert (len(remaining), len(set(remaining))) == (COUNT - done, COUNT - done)


async def test_interrupted_purge_tells_exactly_what_is_done(
    harness: DeadLetterHarness, env: dict[str, str], tmp_path: Path
) -> None:
    """The interruption comes at any time after the answer, also when all are deleted already."""
    await harness.publish(messages())
    with Terminal("dlq", "purge", "--all", "--json", directory=tmp_path, env=env, elsewhere="stdout") as terminal:
        terminal.wait_for("y/N.: ")
        terminal.type("y\n")
        terminal.wait_for("purged [1-9]|y/N.: y")
        terminal.interrupt()
        assert terminal.end() in ENDINGS
        report = json.loads(terminal.file.read_text())
    assert len(await harness.message_ids()) == COUNT - report["purged"]


async def test_interrupted_export_tells_how_many_lines_it_has_written(
    harness: DeadLetterHarness, env: dict[str, str], tmp_path: Path
) -> None:
    await harness.publish(messages())
    with Terminal("dlq", "export", "dead.jsonl", directory=tmp_path, env=env) as terminal:
        terminal.wait_for("exported")
        terminal.interrupt()
        assert terminal.end() in ENDINGS
    exported = int(re.findall(r"exported (\d+)\r\n", terminal.text)[-1])
    assert len((tmp_path / "dead.jsonl").read_text().splitlines()) == exported
    assert len(await harness.message_ids()) == COUNT
