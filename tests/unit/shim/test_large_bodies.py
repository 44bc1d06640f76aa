"""Large bodies over HTTP: they do not hold the event loop, and trouble with the process that parses them is a 503."""

import json
import sys
from typing import Any

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.parsing.parser import SubmissionParser
from ingest.parsing.process import ParserProcess
from ingest.shim import Shim
from ingest.store.sqlite import SqliteStore
from tests.support import hostile
from tests.support.loop_hold import LoopHold
from tests.support.shim_harness import ShimHarness
from tests.support.tasks import TASK

HOLD = 0.05
"""The longest time for which a body may hold the event loop, in seconds."""
LARGE = hostile.batch(hostile.task(hostile.repeated("1", 400)))
"""A valid batch that is parsed in the child process."""
JSON = {"Content-Type": "application/json"}


async def post(app: Shim, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Call the application without a socket, so that only the application is measured; return status and answer."""
    headers = [(b"authorization", b"Bearer key"), (b"content-type", b"application/json")]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


async def test_hostile_bodies_are_refused_without_holding_the_loop(harness: ShimHarness) -> None:
    holds = {}
    paths = {"/v1/tasks": hostile.TASKS, "/v1/tasks/batch": hostile.BATCHES}
    for path, name, make in [(path, name, make) for path, bodies in paths.items() for name, make in bodies.items()]:
        body = make()
        async with LoopHold() as hold:
            status, answer = await post(harness.app, path, body)
        print(f"{name}: {status} {answer['error']!r}, held {hold.longest * 1000:.0f} ms")
        assert status in (400, 413)
        holds[name] = hold.longest
    assert {name: hold for name, hold in holds.items() if hold > HOLD} == {}


@pytest.mark.parametrize("name", hostile.LARGE_BATCHES)
async def test_large_batch_is_accepted_without_holding_the_loop(harness: ShimHarness, name: str) -> None:
    body = hostile.LARGE_BATCHES[name]()
    async with LoopHold() as hold:
        status, answer = await post(harness.app, "/v1/tasks/batch", body)
    assert (status, answer["task_count"]) == (202, 1000)
    assert hold.longest < HOLD


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("import sys; sys.exit(3)", "the body could not be processed; retry later, or send less in one body"),
        ("import time; time.sleep(60)", "the request took too long, retry it with the same idempotency key"),
    ],
)
async def test_answer_is_503_if_the_process_that_parses_fails(
    parts: tuple[SqliteStore, EmbeddedBroker], script: str, error: str
) -> None:
    """Small bodies do not need it."""
    store, broker = parts
    parser = SubmissionParser(deadline=0.5, process=ParserProcess(command=(sys.executable, "-c", script)))
    async with ShimHarness(store, broker, await broker.publisher(), parser=parser) as harness:
        answer = await harness.client.post("/v1/tasks/batch", content=LARGE, headers=JSON)
        assert (answer.status_code, answer.json()) == (503, {"error": error})
        assert answer.headers["Retry-After"] == "1"
        assert (await harness.client.post("/v1/tasks", json=TASK)).status_code == 202
