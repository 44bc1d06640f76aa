"""Dead letters are trimmed on every broker; a crash at any moment loses none."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import aio_pika
import pytest

from ingest.backends import DeadLetterAccess
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.versions import counts_all_bytes
from ingest.domain import topology
from ingest.domain.dead_letters import DeadLetter, dead_letter, read
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import DeadLetterQueue, Publisher
from ingest.domain.trimming import size_of
from ingest.operations.trim import TrimReport, trim
from tests.contract.test_broker import take
from tests.contract.test_dead_letters import DeadLetterHarness, harness
from tests.support.deliveries import delivery
from tests.support.fakes import ScriptedPublisher

__all__ = ["harness"]

BODY = 20_000
COUNT = 250
"""More than are published at once."""


def letter(number: int) -> Message:
    rejected = delivery(body=f"{number:0{BODY}d}".encode(), message_id=f"m{number}", user_id="acme")
    return dead_letter(rejected, InvalidSubmission(Reason.INVALID, "why"), "2026-04-09T12:00:00Z")


class Crash(Exception):
    """Ends a run at a moment that a test chooses."""


class CrashingDeadLetters:
    """`DeadLetterQueue` that crashes before the `number`-th removal."""

    def __init__(self, queue: DeadLetterQueue, number: int) -> None:
        self._queue = queue
        self._number = number
        self.count, self.size, self.browse, self.close = queue.count, queue.size, queue.browse, queue.close

    async def remove(self, deliveries: Sequence[Delivery]) -> None:
        self._number -= bool(deliveries)
        if not self._number:
            raise Crash
        await self._queue.remove(deliveries)


class Opener:
    """Opens the queue as `BrokerBackend.open_dead_letters` does. `crash_before`: the removal that crashes; 0: none."""

    def __init__(self, harness: DeadLetterHarness, crash_before: int = 0) -> None:
        self._harness = harness
        self._crash_before = crash_before

    @asynccontextmanager
    async def open(self, *, change: bool) -> AsyncIterator[DeadLetterAccess]:
        queue = await self._harness.open_dead_letters(writable=change)
        publisher: Callable[[], Awaitable[Publisher]] = _no_publisher
        broker = await self._harness.open_broker_beside(queue) if change else None
        if broker is not None:
            publisher = broker.publisher
        shown: DeadLetterQueue = CrashingDeadLetters(queue, self._crash_before) if self._crash_before else queue
        try:
            yield DeadLetterAccess(shown, publisher, self._harness.trusted_users)
        finally:
            if broker is not None and self._harness.url:
                await broker.close()
            await queue.close()


async def _no_publisher() -> Publisher:
    return ScriptedPublisher(PublishOutcome.UNROUTABLE)


async def run(harness: DeadLetterHarness, keep: int, crash_before: int = 0) -> TrimReport:
    report = TrimReport(keep)
    await trim(Opener(harness, crash_before).open, report)
    return report


async def letters(harness: DeadLetterHarness) -> list[DeadLetter]:
    queue = await harness.open_dead_letters()
    found = [read(delivery, harness.trusted_users) async for deliveries in queue.browse() for delivery in deliveries]
    await queue.close()
    return found


def number_of(dead: DeadLetter) -> int:
    assert dead.origin is not None
    return int((dead.origin.message_id or "")[1:])


async def test_oldest_are_trimmed_and_move_to_the_end_of_the_queue(harness: DeadLetterHarness) -> None:
    await harness.publish([letter(number) for number in range(COUNT)])
    await letters(harness)  # RabbitMQ counts deliveries in headers, which are bytes, too
    report = await run(harness, 20 * (BODY + 1000) + COUNT * 1000)
    found = await letters(harness)
    trimmed = [number_of(dead) for dead in found if dead.trimmed]
    whole = [number_of(dead) for dead in found if not dead.trimmed]
    assert [number_of(dead) for dead in found] == whole + trimmed == [*range(len(trimmed), COUNT), *range(len(trimmed))]
    assert report.customers["acme"].trimmed == len(trimmed)
    assert 20 <= len(whole) <= 50
    assert sum(size_of(dead.delivery) for dead in found) <= report.keep
    again = await run(harness, report.keep)
    assert again.customers == {}


@pytest.mark.parametrize("crash_before", [1, 2])
async def test_crash_before_a_removal_loses_nothing_and_the_next_run_removes_the_copies(
    harness: DeadLetterHarness, crash_before: int
) -> None:
    await harness.publish([letter(number) for number in range(COUNT)])
    with pytest.raises(Crash):
        await run(harness, 10_000, crash_before)
    left = await letters(harness)
    assert {number_of(dead) for dead in left} == set(range(COUNT))
    assert len(left) > COUNT
    report = await run(harness, 10_000)
    found = await letters(harness)
    assert sorted(number_of(dead) for dead in found) == [*range(COUNT)]
    assert all(dead.trimmed for dead in found)
    usage = report.customers["acme"]
    assert usage.copies == len(left) - COUNT
    assert usage.copies + usage.trimmed == len([dead for dead in left if not dead.trimmed])


async def test_size_of_the_queue_is_that_of_its_messages_or_unknown(harness: DeadLetterHarness) -> None:
    """It is unknown while RabbitMQ's statistics are older than the last message, and always before RabbitMQ 4.3."""
    await harness.publish([letter(number) for number in range(10)])
    known = True
    if harness.url:
        known = counts_all_bytes((await RabbitBroker(harness.url).inspect()).version)
    queue = await harness.open_dead_letters()
    async with asyncio.timeout(20):
        while (size := await queue.size()) is None and known:
            await asyncio.sleep(0.2)
    await queue.close()
    assert known or size is None
    assert size is None or 10 * BODY < size < 11 * BODY


@pytest.mark.parametrize("harness", ["rabbitmq"], indirect=True)
async def test_headers_that_a_producer_adds_count(harness: DeadLetterHarness) -> None:
    """They are on the broker's disk, too. Only RabbitMQ has producers."""
    broker = RabbitBroker(harness.url)
    await broker.declare()
    async with await broker.connect() as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(topology.DEAD, ensure=False)
        await exchange.publish(
            aio_pika.Message(b"{}", message_id="m", headers={"x-own": "x" * 50_000}), "task.submitted.acme"
        )
    (delivered,) = await take(await broker.consumer(topology.INGEST_DEAD, 10), 1)
    await broker.close()
    assert 50_000 < size_of(delivered) < 50_500
