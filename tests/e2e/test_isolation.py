"""One customer attacks, and another one's submissions are measured beside it. `-s` prints the latencies."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from statistics import quantiles

import aio_pika
import httpx
import pytest

from ingest.domain.identity import SubmissionKind, item_id, keyed_id
from ingest.shim.http.protocol import BODY_MAX_LAG, CHECK_INTERVAL
from tests.e2e.contract import TASK
from tests.e2e.measured import longest_holds
from tests.fuzz.watch import Watch
from tests.fuzz.world import CUSTOMER, OTHER, World
from tests.servers import AerospikeServer, RabbitServer
from tests.support import hostile

HOOK = "https://hooks.acme.example/asg"
HEAD = "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
MIB = 1024 * 1024
HOLD = 0.05
"""The longest time for which a submission may hold an event loop, in seconds."""
LARGE = [
    *[("/v1/tasks", body) for body in hostile.TASKS.values()],
    *[("/v1/tasks/batch", body) for body in (hostile.BATCHES | hostile.LARGE_BATCHES).values()],
]


@pytest.fixture(scope="module")
def world(rabbitmq: RabbitServer, aerospike: AerospikeServer) -> Iterator[World]:
    with World(rabbitmq, aerospike, module="tests.e2e.measured") as world:
        world.ingest("webhook", "add", CUSTOMER, HOOK)
        yield world
        assert world.defects() == []


@pytest.fixture
async def watch(world: World) -> AsyncIterator[Watch]:
    watch = Watch(world.admin_url)
    await watch.start()
    yield watch
    await watch.close()


def client_of(world: World, customer: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {world.keys[customer]}"}
    # Reading the CA certificates would take a tenth of a second for each client.
    return httpx.AsyncClient(base_url=world.url, headers=headers, timeout=60, verify=False)


def check_holds(log: str) -> None:
    longest, second = longest_holds(log)
    print(f"  loop held for at most {longest * 1000:.0f} ms, then {second * 1000:.0f} ms")
    assert second < HOLD
    assert longest < 2 * HOLD


async def measure(world: World, attack: Awaitable[object], name: str, body: object = TASK) -> list[float]:
    """Submit for `other` until the attack ends, at least 50 times; return the latencies in seconds. All must be 202."""
    attacking = asyncio.ensure_future(attack)
    path = "/v1/tasks/batch" if isinstance(body, dict) and "tasks" in body else "/v1/tasks"
    latencies: list[float] = []
    async with client_of(world, OTHER) as client:
        while not attacking.done() or len(latencies) < 50:
            began = time.monotonic()
            answer = await client.post(path, json=body)
            assert answer.status_code == 202, answer.text
            latencies.append(time.monotonic() - began)
            await asyncio.sleep(0.01)
    await attacking
    p99 = quantiles(latencies, n=100)[98]
    print(f"\n  {name}: {len(latencies)} submissions, p99 {p99 * 1000:.0f} ms, slowest {max(latencies) * 1000:.0f} ms")
    return latencies


async def test_tasks_pass_while_the_queue_of_other_tasks_events_is_full(
    world: World, rabbitmq: RabbitServer, watch: Watch
) -> None:
    """40 tasks with a webhook wait without an attempt that counts, and are accepted when the queue has room."""
    vhost = world.admin_url.rpartition("/")[2]
    policy = {
        "pattern": "^webhook[.]dispatch$",
        "priority": 9,
        "apply-to": "queues",
        "definition": {"max-length": 1, "overflow": "reject-publish"},
    }
    rabbitmq.api("PUT", f"policies/{vhost}/full", policy)
    async with client_of(world, CUSTOMER) as acme, client_of(world, OTHER) as other:
        for _ in range(3):  # they fill the queue
            assert (await acme.post("/v1/tasks", json=TASK | {"callback_url": HOOK})).status_code == 202
        await asyncio.sleep(1)
        refused = [(await acme.post("/v1/tasks", json=TASK | {"callback_url": HOOK})).json() for _ in range(40)]
        began = time.monotonic()
        ids = [(await other.post("/v1/tasks", json=TASK)).json()["task_id"] for _ in range(300)]
        while not set(ids) <= watch.tasks.keys():
            assert time.monotonic() - began < 15
            await asyncio.sleep(0.1)
    print(f"\n  300 tasks were accepted in {time.monotonic() - began:.1f} s beside 40 refused ones")
    assert "circuit_opened" not in world.worker.text()
    rabbitmq.api("DELETE", f"policies/{vhost}/full")
    async with asyncio.timeout(60):
        while rabbitmq.api("GET", f"queues/{vhost}/ingest.tasks").get("messages", 1):
            await asyncio.sleep(0.5)
    assert {answer["task_id"] for answer in refused} <= watch.tasks.keys()
    assert not watch.dead


@pytest.mark.parametrize("drip", [b"", b" "])
async def test_stalled_and_dripping_uploads_of_one_customer_leave_memory_for_others(world: World, drip: bytes) -> None:
    """20 uploads of 8 MiB stop 64 KiB short, and then send nothing or a byte a second. They are given up soon."""

    async def upload() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        head = HEAD.format(path="/v1/tasks/batch", key=world.keys[CUSTOMER])
        writer.write(f"{head}Content-Length: {8 * MIB}\r\n\r\n".encode())
        try:
            for _ in range(8 * 16 - 1):
                writer.write(b" " * 65_536)
                await writer.drain()
            answer = b""
            while not answer and not reader.at_eof():
                writer.write(drip)
                answer = await read_within(reader, 1)
            return answer
        except ConnectionError:
            return b"HTTP/1.1 closed"
        finally:
            writer.close()

    async def attack() -> None:
        async with asyncio.timeout(BODY_MAX_LAG + CHECK_INTERVAL + 10):
            answers = await asyncio.gather(*[upload() for _ in range(20)])
        assert {answer[:9] for answer in answers} == {b"HTTP/1.1 "}

    latencies = await measure(world, attack(), f"beside 20 uploads that {'drip' if drip else 'stall'}")
    assert sorted(latencies)[len(latencies) // 2] < 0.5


async def read_within(reader: asyncio.StreamReader, seconds: float) -> bytes:
    """Return what arrives within this time."""
    try:
        return await asyncio.wait_for(reader.read(100), seconds)
    except TimeoutError:
        return b""


async def test_batches_of_one_customer_do_not_keep_others_from_submitting(world: World) -> None:
    """128 connections send 500-task batches for 5 s."""
    body = json.dumps({"tasks": [TASK] * 500}).encode()
    statuses: set[int] = set()

    async def attack() -> None:
        end = time.monotonic() + 5

        async def send() -> None:
            async with client_of(world, CUSTOMER) as client:
                while time.monotonic() < end:
                    answer = await client.post(
                        "/v1/tasks/batch", content=body, headers={"Content-Type": "application/json"}
                    )
                    statuses.add(answer.status_code)

        await asyncio.gather(*[send() for _ in range(128)])

    latencies = await measure(world, attack(), "batches beside 128 connections", {"tasks": [TASK] * 2})
    assert statuses <= {202, 503}
    assert max(latencies) < 10


async def test_large_bodies_over_http_do_not_hold_the_shim(world: World) -> None:
    """8 MiB of each kind, by two connections; the valid ones reach the worker, which is not held either."""
    logs = {process: len(process.text()) for process in (world.shim, world.worker)}
    statuses: Counter[int] = Counter()

    async def attack() -> None:
        async def send(path: str, body: bytes) -> None:
            async with client_of(world, CUSTOMER) as client:
                answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
                statuses[answer.status_code] += 1

        for path, body in LARGE:
            await asyncio.gather(send(path, body()), send(path, body()))

    latencies = await measure(world, attack(), "beside large bodies over HTTP")
    print(f"  answers {dict(statuses)}")
    assert set(statuses) <= {202, 400, 413}
    for process, start in logs.items():
        check_holds(process.text()[start:])
    assert max(latencies) < 5


async def test_large_messages_do_not_hold_the_worker(world: World, watch: Watch) -> None:
    """The same as messages of a direct producer. Tasks of another customer are accepted meanwhile."""
    start = len(world.worker.text())
    connection = await aio_pika.connect(world.producer_urls[CUSTOMER])
    exchange = await (await connection.channel()).get_exchange("asg.submissions", ensure=False)
    bodies = [(path, body()) for path, body in LARGE]
    valid = range(len(hostile.TASKS) + len(hostile.BATCHES), len(LARGE))
    batch_ids = [keyed_id(SubmissionKind.BATCH, CUSTOMER, f"large-{number}") for number in valid]
    items = {item_id(batch_id, index) for batch_id in batch_ids for index in range(1000)}

    async def attack() -> None:
        for number, (path, body) in enumerate(bodies):
            kind = "batch" if path.endswith("batch") else "task"
            message = aio_pika.Message(body, message_id=f"large-{number}", content_type="application/json")
            await exchange.publish(message, f"{kind}.submitted.{CUSTOMER}")
        async with asyncio.timeout(100):
            while sum(watch.dead.values()) < valid.start or not items <= watch.tasks.keys():
                await asyncio.sleep(0.1)

    latencies = await measure(world, attack(), "beside large messages")
    await connection.close()
    print(f"  {dict(watch.dead)} and {len(items)} items accepted")
    check_holds(world.worker.text()[start:])
    assert max(latencies) < 5
