"""The bench of fairness: how long quiet customers wait for their events while another customer floods the service."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import aio_pika
import httpx

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.customers import ApiKey, Customer, hash_api_key, key_id_of
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.messages import Message
from ingest.domain.ports import Publisher
from ingest.domain.topology import CONSENSUS_TASKS, EVENTS, SUBMISSIONS
from ingest.store.aerospike.store import AerospikeStore
from tests.bench.harness import TASK, BenchHarness, Depth, preload
from tests.bench.http import wrk
from tests.bench.measure import Row
from tests.servers.process import free_ports, wait_until

QUIET: Final = tuple(f"quiet{number}" for number in range(20))
_TASK: Final = TASK | {"type": "moderation"}
"""What quiet customers submit. Only their events have this type."""
_PAUSE: Final = 0.5
"""Seconds between two submissions of a quiet customer."""
_BEFORE: Final = 4.0
"""Seconds for which the flood lasts before the quiet customers begin."""
_DURATION: Final = 12.0
"""Seconds for which the quiet customers submit."""
_PATIENCE: Final = 60.0
"""Seconds after which an event that has not arrived counts as late by that much."""
BACKLOG: Final = 1_000_000
"""Submissions of a direct producer that wait at the start; more than are accepted until the end."""


class Waits:
    """When submissions were made and when their events arrived; `seconds` are the waits, by customer."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[str, float]] = {}
        self._arrived: dict[str, float] = {}

    def sent(self, customer: str, id_: str, at: float) -> None:
        self._sent[id_] = customer, at

    def arrived(self, id_: str) -> None:
        self._arrived.setdefault(id_, time.perf_counter())

    @property
    def missing(self) -> int:
        return len(self._sent.keys() - self._arrived.keys())

    def of_most(self) -> list[float]:
        """Return the waits in ms, in order, of the 18 of 20 customers whose longest waits are the shortest."""
        now = time.perf_counter()
        waits: dict[str, list[float]] = {}
        for id_, (customer, at) in self._sent.items():
            waits.setdefault(customer, []).append(1e3 * (self._arrived.get(id_, now) - at))
        kept = sorted(waits.values(), key=max)[: len(waits) * 9 // 10]
        return sorted(wait for own in kept for wait in own)


async def fairness(harness: BenchHarness) -> list[Row]:
    """20 quiet customers beside a flood: per s is what the flood gets, p50 and p99 are POST to event of the quiet."""
    return [
        await _quiet(harness, "quiet over HTTP, nothing else"),
        await _backlog_alone(harness),
        await _quiet(harness, "(a) beside a direct backlog", backlog=True),
        await _quiet(harness, "(b) beside a flood of singles", flood=("fresh", 64)),
        await _quiet(harness, "(b) beside a flood of batches", flood=("batch", 8)),
        await _quiet(harness, "(c) quiet directly, beside (a)", backlog=True, direct=True),
    ]


async def _backlog_alone(harness: BenchHarness) -> Row:
    """What the backlog gets without the quiet customers; the shim runs, and their events are expected, too."""
    await _prepare(harness)
    url = harness.env["BENCH_AMQP"]
    await preload(url, BACKLOG)
    async with _service(harness), Depth(url, CONSENSUS_TASKS) as depth, _watching(url, Waits()):
        await asyncio.sleep(_BEFORE)
        before, began = await depth.now(), time.perf_counter()
        await asyncio.sleep(_DURATION)
        return _row("direct backlog, nothing else", (await depth.now() - before) / (time.perf_counter() - began), [])


async def _quiet(
    harness: BenchHarness,
    name: str,
    *,
    backlog: bool = False,
    flood: tuple[str, int] | None = None,
    direct: bool = False,
) -> Row:
    """Measure the quiet customers beside a backlog, or beside a flood of wrk: its mode and its connections."""
    await _prepare(harness)
    url = harness.env["BENCH_AMQP"]
    if backlog:
        await preload(url, BACKLOG)
    waits = Waits()
    async with _service(harness) as address, Depth(url, CONSENSUS_TASKS) as depth, _watching(url, waits):
        flooding = asyncio.create_task(wrk(address, flood[0], _BEFORE + _DURATION, flood[1])) if flood else None
        await asyncio.sleep(_BEFORE)
        before, began = await depth.now(), time.perf_counter()
        await _submit(address, url, waits, direct=direct)
        rate = (await depth.now() - before) / (time.perf_counter() - began)
        give_up = time.perf_counter() + _PATIENCE
        while waits.missing and time.perf_counter() < give_up:
            await asyncio.sleep(0.1)
        if flooding is not None:
            await flooding
    return _row(name, rate, waits.of_most())


def _row(name: str, rate: float, waits: Sequence[float]) -> Row:
    p50, p99 = (waits[len(waits) // 2], waits[len(waits) * 99 // 100]) if waits else (0.0, 0.0)
    return Row(name, rate, 0.0, 0.0, 0.0, 0.0, p50=p50, p99=p99)


async def _prepare(harness: BenchHarness) -> None:
    """Make a fresh broker, and add the quiet customers, each with its name as its API key.

    The producer of the backlog has queues of its own.
    """
    await harness.fresh()
    await harness.add_producer("c")
    store = await AerospikeStore.open(harness.aerospike.url)
    for customer in QUIET:
        hashed = hash_api_key(customer)
        await store.save_customer(Customer(cust_id=customer))
        await store.save_key(ApiKey(key_id=key_id_of(hashed), cust_id=customer, key_hash=hashed, created_at=1))
    await store.close()


@asynccontextmanager
async def _service(harness: BenchHarness) -> AsyncIterator[str]:
    """Run one shim and one worker; give the shim's address."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    with harness.running("-m", "ingest", "serve", "--port", str(port)), harness.running("-m", "ingest", "work"):
        await asyncio.to_thread(wait_until, partial(httpx.get, address), "ingest serve", 30)
        yield address


@asynccontextmanager
async def _watching(url: str, waits: Waits) -> AsyncIterator[None]:
    """Record when the events of quiet customers arrive, from a queue of their own."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(EVENTS, "task.accepted.moderation.*")

        async def record(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            waits.arrived(json.loads(message.body)["data"]["task_id"])

        await queue.consume(record, no_ack=True)
        yield


async def _submit(address: str, url: str, waits: Waits, *, direct: bool) -> None:
    """Let all quiet customers submit for a while, over HTTP or directly."""
    broker = RabbitBroker(url)
    publisher = await broker.publisher()
    async with httpx.AsyncClient(base_url=address, timeout=60) as client, asyncio.TaskGroup() as group:
        for number, customer in enumerate(QUIET):
            pause = number / len(QUIET) * _PAUSE
            if direct:
                group.create_task(_produce(publisher, waits, customer, pause))
            else:
                group.create_task(_post(client, waits, customer, pause))
    await broker.close()


async def _post(client: httpx.AsyncClient, waits: Waits, customer: str, pause: float) -> None:
    await asyncio.sleep(pause)
    headers = {"Authorization": f"Bearer {customer}"}
    for _ in range(int(_DURATION / _PAUSE)):
        began = time.perf_counter()
        answer = await client.post("/v1/tasks", json=_TASK, headers=headers)
        waits.sent(customer, answer.raise_for_status().json()["task_id"], began)
        await asyncio.sleep(max(0.0, _PAUSE - (time.perf_counter() - began)))


async def _produce(publisher: Publisher, waits: Waits, customer: str, pause: float) -> None:
    await asyncio.sleep(pause)
    body = json.dumps(_TASK).encode()
    for number in range(int(_DURATION / _PAUSE)):
        began = time.perf_counter()
        message = Message(
            exchange=SUBMISSIONS, routing_key=f"task.submitted.{customer}", body=body, message_id=str(number)
        )
        waits.sent(customer, keyed_id(SubmissionKind.TASK, customer, str(number)), began)
        assert await publisher.publish([message]) == ["confirmed"]
        await asyncio.sleep(max(0.0, _PAUSE - (time.perf_counter() - began)))
