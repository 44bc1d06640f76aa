"""The examples for RabbitMQ in the README of the SDK run as they are; tests/e2e/test_consumer_kills.py runs others."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from asg_gateway.amqp.testing import submission_duplicate, submission_rejected

from tests.support.parked_topology import declared

_README: Final = Path(__file__).parents[2] / "ingest/sdk/README.md"


def example(part: str) -> str:
    """Return the only example that contains a text."""
    blocks = re.findall(r"```python\n(.*?)```", _README.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if part in block]
    return str(block)


def run(directory: Path, *command: str, **env: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **env}, cwd=directory, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_test_of_a_handler_passes(tmp_path: Path) -> None:
    (tmp_path / "test_handler.py").write_text(example("def test_copy_is_handled_once"))
    assert "1 passed" in run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_handler.py")


async def test_feedback_prints_the_producers_keys(rabbitmq_url: str, tmp_path: Path) -> None:
    script = example("Feedback(").replace("timeout=10", "timeout=2")
    async with declared(rabbitmq_url, ["feedback.guest"], parking=False) as broker:
        await broker.publish(
            "feedback.guest", submission_rejected(message_id="a"), submission_duplicate(message_id="b")
        )
        output = await asyncio.to_thread(run, tmp_path, "-c", script, AMQP_URL=rabbitmq_url)
        assert await broker.count("feedback.guest") == 0
    assert output.splitlines() == [
        "a invalid data_url must start with https://",
        "b is a duplicate",
    ]
