"""A consumer whose connections are cut at random moments, while it connects, handles, acknowledges and parks."""

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from asg_gateway.amqp import Consumer, Event, Feedback, Park, SqlDedupe
from asg_gateway.amqp.testing import submission_rejected, task_accepted

from tests.chaos.proxy import Proxy
from tests.support.parked_topology import Broker, declared

QUEUE = "consensus.tasks"
PARKED = f"{QUEUE}.parked"
FEEDBACK = "feedback.guest"
CUTS = 12


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[Broker]:
    async with declared(rabbitmq_url, [QUEUE, FEEDBACK]) as broker:
        yield broker


@pytest.fixture
async def proxy(rabbitmq_url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(urlsplit(rabbitmq_url).port or 0)
    await proxy.start()
    yield proxy
    await proxy.stop()


def through(proxy: Proxy, url: str) -> str:
    return url.replace(f":{proxy.target}/", f":{proxy.port}/")


async def cut(proxy: Proxy) -> None:
    """Cut all connections a number of times, in the middle of a frame or at once."""
    while proxy.cuts < CUTS:
        await asyncio.sleep(random.uniform(0, 1.2))
        random.choice([proxy.cut, proxy.cut_now])()


async def test_consumer_handles_or_parks_every_event_and_none_twice(
    broker: Broker, proxy: Proxy, rabbitmq_url: str, tmp_path: Path
) -> None:
    database = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE notes (event_id TEXT)")

    def handle(event: Event, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO notes VALUES (?)", (event.id,))
        if event.id.startswith("odd"):
            raise Park("odd")

    def noted() -> Counter[str]:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return Counter(row[0] for row in connection.execute("SELECT event_id FROM notes"))

    published: list[str] = []
    dedupe = SqlDedupe(lambda: sqlite3.connect(database, timeout=30))
    consumer = Consumer(through(proxy, rabbitmq_url), QUEUE, handle, dedupe=dedupe)
    running = asyncio.create_task(consumer.run())
    cutting = asyncio.create_task(cut(proxy))
    while not cutting.done():
        event = task_accepted(id=f"{random.choice(['odd', 'usual'])}-{len(published)}")
        await broker.publish(QUEUE, event, *random.choice([[event], [], []]))
        published.append(event.id)
        await asyncio.sleep(0.01)
    odd = {event_id for event_id in published if event_id.startswith("odd")}
    parked: set[str] = set()
    async with asyncio.timeout(90):
        while len(noted()) < len(published) - len(odd) or parked != odd:
            assert not running.done(), running.result()
            message = await broker.take(PARKED)
            parked.update([message.message_id or ""] if message else [])
            await asyncio.sleep(0 if message else 0.1)
    async with asyncio.timeout(60):
        consumer.stop()
        await running
        while await broker.count(QUEUE):  # copies that were not handled, or were not parked yet
            running = asyncio.create_task(consumer.run())
            await asyncio.sleep(2)
            consumer.stop()
            await running
    assert noted() == Counter(set(published) - odd)
    assert proxy.cuts >= CUTS


async def test_feedback_returns_every_report_once(broker: Broker, proxy: Proxy, rabbitmq_url: str) -> None:
    async def publish() -> None:
        while not cutting.done():
            report = submission_rejected(id=f"report-{len(published)}")
            await broker.publish(FEEDBACK, report, *random.choice([[report], [], []]))
            published.append(report.id)
            await asyncio.sleep(0.01)

    published: list[str] = []
    received: list[str] = []
    cutting = asyncio.create_task(cut(proxy))
    publishing = asyncio.create_task(publish())
    async with asyncio.timeout(90), Feedback(through(proxy, rabbitmq_url), timeout=5) as feedback:
        async for report in feedback:
            received.append(report.id)
            await asyncio.sleep(0.002)
    await publishing
    assert Counter(received) == Counter(published)
