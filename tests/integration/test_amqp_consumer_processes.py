"""Consumers of the SDK as processes: events that kill them, signals, and what they leave behind."""

import asyncio
import contextlib
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from asg_gateway.amqp.testing import task_accepted

from tests.servers.process import wait_until
from tests.support.parked_topology import Broker, declared

QUEUE = "consensus.tasks"
PARKED = f"{QUEUE}.parked"
EVENTS = [task_accepted(id=f"event-{number:02}") for number in range(40)]
IDS = [event.id for event in EVENTS]
_SCRIPT = """
import logging, os, sqlite3, sys, time
from asg_gateway.amqp import Consumer, SqlDedupe

logging.basicConfig(level="INFO")

def handle(event, connection):
    connection.execute("INSERT INTO notes VALUES (?, ?)", (event.id, os.getpid()))
    {body}
    print("handled", event.id, flush=True)

def connect():
    connection = sqlite3.connect(sys.argv[2], timeout=30)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("CREATE TABLE IF NOT EXISTS notes (event_id TEXT, pid INTEGER)")
    return connection

consumer = Consumer(sys.argv[1], "consensus.tasks", handle, dedupe=SqlDedupe(connect), {options})
consumer.run_forever()
print("ended", flush=True)
"""


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[Broker]:
    async with declared(rabbitmq_url) as broker:
        yield broker


class Script:
    """A consumer as a process.

    Args:
        body: a statement for the handler.
        options: arguments of the consumer.
    """

    def __init__(self, url: str, directory: Path, body: str = "pass", options: str = "") -> None:
        self.database = directory / "app.db"
        self.output = directory / f"{time.monotonic_ns()}.log"
        self._command = [sys.executable, "-c", _SCRIPT.format(body=body, options=options), url, str(self.database)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "subprocess.Popen[bytes]":
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(self._command, stdout=file, stderr=file)
        return self.process

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        process = self.start()
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def text(self) -> str:
        return self.output.read_text()

    def noted(self) -> list[str]:
        """Return the ids of the events that were handled, copies included."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return sorted(row[0] for row in connection.execute("SELECT event_id FROM notes"))


def supervise(script: Script, parked: int, handled: int) -> int:
    """Start a process whenever the last one has died, until so many events are parked and handled; return how often."""
    for starts in count(1):
        with script.running() as process:
            while process.poll() is None:
                if script.text().count("event_parked") == parked and len(script.noted()) == handled:
                    process.send_signal(signal.SIGTERM)
                    process.wait(20)
                    return starts
                time.sleep(0.02)
    raise AssertionError


async def test_event_that_kills_its_process_is_parked_and_no_neighbour_with_it(
    broker: Broker, rabbitmq_url: str, tmp_path: Path
) -> None:
    """A supervisor starts the process again and again, as Kubernetes does."""
    await broker.publish(QUEUE, *EVENTS)
    kill = f"if event.id in ('{IDS[7]}', '{IDS[20]}'): time.sleep(0.05); os._exit(9)"
    script = Script(rabbitmq_url, tmp_path, kill, "max_attempts=3")
    starts = await asyncio.wait_for(asyncio.to_thread(supervise, script, 2, 38), 120)
    assert script.noted() == sorted({*IDS} - {IDS[7], IDS[20]})
    parked = [await broker.take(PARKED) for _ in range(3)]
    assert {message.message_id for message in parked if message} == {IDS[7], IDS[20]}
    errors = [str(message.headers["x-parked-error"]) for message in parked if message]
    assert all(re.match("PoisonError: delivered [5-9] times before", error) for error in errors), errors
    assert 6 <= starts <= 11, "each of the two events kills up to five processes"
    assert await broker.count(QUEUE) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_lets_running_handlers_end_and_begins_no_others(
    broker: Broker, rabbitmq_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    await broker.publish(QUEUE, *EVENTS)
    script = Script(rabbitmq_url, tmp_path, "print('begun', flush=True); time.sleep(1)", "concurrency=2")

    def stop() -> int:
        with script.running() as process:
            wait_until(lambda: "begun" in script.text(), "a handler")
            process.send_signal(number)
            return process.wait(20)

    assert await asyncio.to_thread(stop) == 0
    assert "ended" in script.text()
    handled = len(script.noted())
    assert 1 <= handled <= 2
    await asyncio.sleep(0.5)
    assert await broker.count(QUEUE) == 40 - handled, "what was handled is acknowledged, the rest is in the queue"


@pytest.mark.parametrize("second", [True, False])
async def test_handler_that_hangs_ends_with_the_drain_timeout_or_the_second_signal(
    broker: Broker, rabbitmq_url: str, tmp_path: Path, second: bool
) -> None:
    await broker.publish(QUEUE, EVENTS[0])
    timeout = 60 if second else 1
    script = Script(rabbitmq_url, tmp_path, "print('begun', flush=True); time.sleep(90)", f"drain_timeout={timeout}")

    def stop() -> float:
        with script.running() as process:
            wait_until(lambda: "begun" in script.text(), "a handler")
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            if second:
                wait_until(lambda: "consumer_drains" in script.text(), "the drain")
                process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            return time.monotonic() - begun

    assert await asyncio.to_thread(stop) < 10
    assert script.noted() == []
    await asyncio.sleep(0.5)
    assert await broker.count(QUEUE) == 1
    assert ("consumer_stops_at_once" if second else "drain_timeout_exceeded") in script.text()


async def test_heartbeats_continue_while_blocking_handlers_run(
    broker: Broker, rabbitmq_url: str, tmp_path: Path
) -> None:
    """RabbitMQ closes a connection that is silent for more than twice the heartbeat of 10 s."""
    await broker.publish(QUEUE, EVENTS[0])
    script = Script(rabbitmq_url, tmp_path, "time.sleep(25)")

    def handle() -> None:
        with script.running():
            wait_until(lambda: "handled" in script.text(), "the handler", 60)
            wait_until(lambda: script.noted() == IDS[:1], "the commit", 10)
            assert "subscription_lost" not in script.text()

    await asyncio.to_thread(handle)
