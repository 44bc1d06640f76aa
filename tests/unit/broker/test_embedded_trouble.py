"""The embedded broker while its file cannot be written: finished deliveries wait, and nothing is raised or lost."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker, EmbeddedConsumer
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.topology import INGEST_TASKS, SUBMISSIONS
from ingest.sqlite.file import SqliteFile

PATIENCE = 0.05
MESSAGES = [
    Message(exchange=SUBMISSIONS, routing_key="task.submitted.c", body=b"{}", message_id=f"m{number}")
    for number in range(3)
]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock, as another process may."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
async def broker(path: Path) -> AsyncIterator[EmbeddedBroker]:
    broker = await EmbeddedBroker.open(path, patience=PATIENCE)
    publisher = await broker.publisher()
    await publisher.publish(MESSAGES)
    yield broker
    await broker.close()


async def received(consumer: EmbeddedConsumer) -> list[Delivery]:
    return await asyncio.wait_for(consumer.receive(), 5)


def stored(path: Path) -> list[tuple[str, int, int]]:
    """The id, mark and count of each message in the file."""
    database = sqlite3.connect(path)
    try:
        return database.execute("SELECT message_id, delivered, count FROM message ORDER BY id").fetchall()
    finally:
        database.close()


async def test_ack_and_requeue_take_effect_once_the_file_is_unlocked(broker: EmbeddedBroker, path: Path) -> None:
    consumer = await broker.consumer(INGEST_TASKS, 10)
    first, second, third = await received(consumer)
    with locked(path):
        await consumer.ack([first])
        await consumer.requeue([second])
        await consumer.ack([third])
        receiving = asyncio.create_task(consumer.receive())
        await asyncio.sleep(3 * PATIENCE)
    (again,) = await asyncio.wait_for(receiving, 5)
    assert (again.message_id, again.deliveries) == ("m1", 1)
    assert stored(path) == [("m1", 1, 1)]


async def test_consumer_delivers_what_arrived_once_the_file_is_unlocked(broker: EmbeddedBroker, path: Path) -> None:
    consumer = await broker.consumer(INGEST_TASKS, 10)
    with locked(path):
        receiving = asyncio.create_task(consumer.receive())
        await asyncio.sleep(3 * PATIENCE)
        assert not receiving.done()
    assert len(await asyncio.wait_for(receiving, 5)) == 3


async def test_pause_and_close_of_a_locked_file_leave_the_messages_to_the_next_process(
    broker: EmbeddedBroker, path: Path
) -> None:
    consumer = await broker.consumer(INGEST_TASKS, 10)
    await received(consumer)
    with locked(path):
        await consumer.pause()
        await consumer.close()
    await broker.close()
    reopened = await EmbeddedBroker.open(path)
    assert stored(path) == [("m0", 0, 1), ("m1", 0, 1), ("m2", 0, 1)]
    await reopened.close()


async def test_publish_to_a_locked_file_is_not_confirmed(broker: EmbeddedBroker, path: Path) -> None:
    publisher = await broker.publisher()
    with locked(path):
        assert await publisher.publish(MESSAGES[:1]) == [PublishOutcome.UNKNOWN]
        with pytest.raises(BrokerUnavailable, match="locked"):
            await publisher.ready()
    assert await publisher.publish(MESSAGES[:1]) == [PublishOutcome.CONFIRMED]
    await publisher.ready()


async def test_calls_that_queue_for_a_locked_file_all_fail_after_the_patience_of_one(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    file = SqliteFile(path, (("CREATE TABLE t (x)",),), BrokerUnavailable, patience=0.2)
    await file.connect()
    with locked(path):
        begin = time.monotonic()
        calls = [file.change(lambda db: db.execute("INSERT INTO t VALUES (1)")) for _ in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - begin < 2
    assert {type(result) for result in results} == {BrokerUnavailable}
    await file.close()


async def test_full_file_fails_a_change_and_keeps_what_it_has(tmp_path: Path) -> None:
    """A limit of pages has the effect of a full disk."""
    file = SqliteFile(tmp_path / "file.db", (("CREATE TABLE t (x)",),), BrokerUnavailable)
    await file.connect()
    await file.change(lambda db: db.execute("INSERT INTO t VALUES (1)"))
    await file.change(lambda db: db.execute("PRAGMA max_page_count = 2"))
    with pytest.raises(BrokerUnavailable, match="database or disk is full"):
        await file.change(lambda db: db.execute("INSERT INTO t VALUES (zeroblob(100000))"))
    await file.change(lambda db: db.execute("PRAGMA max_page_count = 100"))
    await file.change(lambda db: db.execute("INSERT INTO t VALUES (zeroblob(100000))"))
    await file.check()
    assert await file.read(lambda db: db.execute("SELECT count(*) FROM t").fetchone()) == (2,)
    await file.close()
