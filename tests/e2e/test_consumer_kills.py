"""The consumers of the README of the SDK, killed again and again under load: each event is handled exactly once."""

import asyncio
import contextlib
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import aio_pika
import pytest
from asg_gateway.amqp.testing import encode, task_accepted

from tests.support.parked_topology import QUEUES, Broker, declared

KILLS: Final = int(os.environ.get("INGEST_TEST_CONSUMER_KILLS", "25"))
"""How often each of the two consumers is killed."""
RATE: Final = 200
"""Events per second and queue. About a third is published once more, some at once and some later."""
_README: Final = Path(__file__).parents[2] / "ingest/sdk/README.md"
_TABLES: Final = {"consensus.tasks": ("labelling", "task_id"), "webhook.dispatch": ("outbox", "subject")}
_SCHEMA: Final = """
PRAGMA journal_mode = wal;
CREATE TABLE labelling (task_id TEXT, question TEXT);
CREATE TABLE outbox (subject TEXT, event_type TEXT, url TEXT);
"""


def scripts() -> dict[str, str]:
    """Return the scripts of the README by the queue that they consume."""
    section = _README.read_text().partition("## Consume events\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return {queue: block for queue in QUEUES for block in blocks if f'"{queue}"' in block}


class Load:
    """Publishes the same events to both queues at a steady rate, and copies of some of them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.task_ids: list[str] = []
        self.copies = 0

    async def run(self) -> None:
        channel = await self._broker.connection.channel()
        begun = time.monotonic()
        while True:
            number = len(self.task_ids)
            task_id = f"tsk_{number:026}"
            message = _message(task_id)
            for queue in QUEUES:
                await channel.default_exchange.publish(message, queue)
            self.task_ids.append(task_id)
            for copied in random.choice([[task_id], self.task_ids[-50:][:1], [], [], [], []]):
                self.copies += 1
                for queue in QUEUES:
                    await channel.default_exchange.publish(_message(copied), queue)
            await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))


def _message(task_id: str) -> aio_pika.Message:
    event = task_accepted(task_id=task_id, callback_url="https://a.example/hook")
    return aio_pika.Message(encode(event), message_id=event.id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


class Consumer:
    """A script of the README, as a process that is killed and started again."""

    def __init__(self, queue: str, script: Path, database: Path, url: str) -> None:
        self.table, self.column = _TABLES[queue]
        self._database = database
        self._output = script.with_suffix(".log")
        self._command = [sys.executable, str(script)]
        self._env = {**os.environ, "AMQP_URL": url, "DATABASE": str(database)}

    def start(self) -> "subprocess.Popen[bytes]":
        with self._output.open("ab") as file:
            return subprocess.Popen(self._command, env=self._env, stdout=file, stderr=file)

    async def be_killed(self, times: int) -> None:
        """Kill the process so often, each time within 0.2 s after it has handled something."""
        for _ in range(times):
            before = self.count()
            process = self.start()
            try:
                async with asyncio.timeout(30):
                    while self.count() == before:
                        assert process.poll() is None, self._output.read_text()
                        await asyncio.sleep(0.01)
                await asyncio.sleep(random.uniform(0, 0.2))
            finally:
                process.kill()
                process.wait()

    def count(self) -> int:
        """Return how many events were handled, copies included."""
        return int(self._read(f"SELECT count(*) FROM {self.table}")[0][0])

    def handled(self) -> Counter[str]:
        """Return how often each task was handled."""
        return Counter(row[0] for row in self._read(f"SELECT {self.column} FROM {self.table}"))

    def _read(self, query: str) -> Sequence[Any]:
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[Broker]:
    async with declared(rabbitmq_url) as broker:
        yield broker


def test_consumers_of_the_readme_have_at_most_15_lines() -> None:
    assert {queue: len(script.splitlines()) <= 15 for queue, script in scripts().items()} == dict.fromkeys(QUEUES, True)


@pytest.mark.timeout(60 + 8 * KILLS)
async def test_consumers_killed_under_load_handle_every_event_exactly_once(
    broker: Broker, rabbitmq_url: str, tmp_path: Path
) -> None:
    """The tables have no unique constraints, so a second handling would be a second row."""
    database = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript(_SCHEMA)
    consumers = []
    for queue, text in scripts().items():
        script = tmp_path / f"{queue}.py"
        script.write_text(text)
        consumers.append(Consumer(queue, script, database, rabbitmq_url))
    load = Load(broker)
    publishing = asyncio.create_task(load.run())
    begun = time.monotonic()
    await asyncio.gather(*[consumer.be_killed(KILLS) for consumer in consumers])
    seconds = time.monotonic() - begun
    publishing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await publishing
    await finish(consumers, load.task_ids)
    print(f"{2 * KILLS} kills in {seconds:.0f} s, {len(load.task_ids)} events to each queue, {load.copies} copies")
    for consumer in consumers:
        handled = consumer.handled()
        # The last event may be in one queue only, because the load was stopped while it was published.
        assert set(load.task_ids) - set(handled) == set(), "lost"
        assert {task_id for task_id, times in handled.items() if times > 1} == set(), "handled twice"
        assert len(handled) <= len(load.task_ids) + 1, "never published"
    for queue in QUEUES:
        assert await broker.count(queue) == 0
        assert await broker.count(f"{queue}.parked") == 0


async def finish(consumers: Sequence[Consumer], task_ids: Sequence[str]) -> None:
    """Let the consumers run until all is handled, or nothing has happened for 10 s; then end them."""
    processes = [consumer.start() for consumer in consumers]
    try:
        counts, since = [0, 0], time.monotonic()
        while min(counts) < len(task_ids) and time.monotonic() < since + 10:
            await asyncio.sleep(0.1)
            now = [consumer.count() for consumer in consumers]
            counts, since = now, since if now == counts else time.monotonic()
        await asyncio.sleep(1)  # copies may follow, and acknowledgements
        for process in processes:
            process.terminate()
        assert [await asyncio.to_thread(process.wait, 20) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
