"""A real shim process during outages of its real servers, and while it stops under load."""

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import bundles, topology
from ingest.domain.messages import Delivery
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until

ANSWERS = 12.0
"""Seconds within which every request is answered: its deadline, plus some seconds for a busy machine."""


class Shim:
    """`ingest serve` with one customer."""

    def __init__(self, process: Ingest, url: str, key: str) -> None:
        self.process = process
        self.url = url
        self.client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=ANSWERS)
        self.headers = dict(self.client.headers)

    def post(self, key: str) -> httpx.Response:
        return self.client.post("/v1/tasks", json=TASK | {"idempotency_key": key})

    def wait_for_recovery(self, key: str) -> None:
        """Wait until the shim accepts a submission with this key and is ready."""
        wait_until(lambda: self.post(key).status_code in (200, 202), "the shim's recovery", 30)
        wait_ready(self.url)


@pytest.fixture
def shim(rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path) -> Iterator[Shim]:
    env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_STORE_URL": aerospike.url, "INGEST_CONFIRM_TIMEOUT": "3"}
    cust_id = f"trouble{os.urandom(4).hex()}"
    assert run_ingest("customer", "add", cust_id, env=env, directory=tmp_path).returncode == 0
    created = run_ingest("key", "create", cust_id, "--json", env=env, directory=tmp_path)
    (port,) = free_ports(1)
    with Ingest("serve", "--port", str(port), directory=tmp_path, env=env) as process:
        url = f"http://127.0.0.1:{port}"
        wait_ready(url)
        shim = Shim(process, url, httpx.Response(200, text=created.stdout).json()["api_key"])
        shim.wait_for_recovery("first")  # the test before may have paused a server
        yield shim
        shim.client.close()


def assert_unavailable(shim: Shim, key: str) -> None:
    """Assert that the shim answers a submission with 503 in time, and is not ready but alive."""
    start = time.monotonic()
    answer = shim.post(key)
    assert time.monotonic() - start < ANSWERS
    assert answer.status_code == 503, shim.process.text()
    assert answer.headers["retry-after"] == "1"
    assert list(answer.json()) == ["error"]
    assert shim.client.get("/readyz").status_code == 503
    assert shim.client.get("/healthz").status_code == 200
    assert shim.client.get("/openapi.json").status_code == 200


def alarmed(rabbitmq: RabbitServer) -> bool:
    """Return whether the statistics of the management API show a memory alarm."""
    return any(node["mem_alarm"] for node in rabbitmq.api("GET", "nodes"))


def test_hanging_store_is_answered_503_and_the_same_key_is_accepted_afterwards(
    shim: Shim, aerospike: AerospikeServer
) -> None:
    if not aerospike.controllable:
        pytest.skip("the Aerospike server given cannot be paused")
    aerospike.pause()
    try:
        assert_unavailable(shim, "k")
        assert_unavailable(shim, "k")
    finally:
        aerospike.resume()
    shim.wait_for_recovery("k")
    assert shim.post("k").json()["idempotent"] is True


def test_hanging_broker_is_answered_503_while_replays_are_answered_200(shim: Shim, rabbitmq: RabbitServer) -> None:
    """The shim is unready before the broker misses a heartbeat, so that a load balancer reacts at once."""
    if not rabbitmq.controllable:
        pytest.skip("the RabbitMQ server given cannot be paused")
    rabbitmq.pause()
    try:
        answer = shim.post("k")
        assert answer.status_code == 503, shim.process.text()
        assert answer.headers["retry-after"] == "1"
        assert shim.post("first").status_code == 200
        ready = shim.client.get("/readyz")
        assert (ready.status_code, ready.elapsed.total_seconds() < 3) == (503, True)
    finally:
        rabbitmq.resume()
    shim.wait_for_recovery("k")
    assert shim.client.get("/readyz").status_code == 200


def test_memory_alarm_is_answered_503_until_it_ends_while_replays_are_answered_200(
    shim: Shim, rabbitmq: RabbitServer
) -> None:
    """During a memory alarm, RabbitMQ blocks connections that publish."""
    if not rabbitmq.has_ctl:
        pytest.skip("the memory limit of the RabbitMQ server given cannot be set")
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        wait_until(lambda: shim.post(f"k{time.monotonic_ns()}").status_code == 503, "the alarm", 20)
        assert_unavailable(shim, "k")
        assert shim.post("first").status_code == 200
        wait_until(lambda: alarmed(rabbitmq), "the alarm in the statistics, which lag by some seconds", 30)
    finally:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.6")  # as in deploy/rabbitmq/rabbitmq.conf
    shim.wait_for_recovery("k")
    wait_until(lambda: not alarmed(rabbitmq), "the end of the alarm in the statistics", 30)


async def submissions(rabbitmq_url: str) -> int:
    """Return how many submissions of the shim wait for workers."""
    broker = RabbitBroker(rabbitmq_url)
    received: list[Delivery] = []
    async with asyncio.timeout(30):
        for queue, messages in (await broker.depths(topology.ADMITTED_QUEUES)).items():
            consumer = await broker.consumer(queue, 1000)
            expected = len(received) + (messages or 0)
            while len(received) < expected:
                received += await consumer.receive()
    await broker.close()
    return sum(len(bundles.unpack(one)) if one.type == bundles.TYPE else 1 for one in received)


async def test_sigterm_under_load_answers_every_published_submission(shim: Shim, rabbitmq_url: str) -> None:
    """All answers are 202. A request on a connection that closes fails at once, and nothing of it is published.

    Clients repeat such a request (RFC 9112, section 9.3.1), which its idempotency key makes safe.
    """
    statuses: list[int] = []
    errors: list[httpx.TransportError] = []
    numbers = itertools.count()
    answered: set[str] = set()

    async def client() -> None:
        async with httpx.AsyncClient(base_url=shim.url, headers=shim.headers, timeout=ANSWERS) as http:
            while True:
                key = f"load-{next(numbers)}"
                try:
                    answer = await http.post("/v1/tasks", json=TASK | {"idempotency_key": key})
                except httpx.TransportError as error:
                    errors.append(error)
                    return
                answered.add(key)
                statuses.append(answer.status_code)

    clients = [asyncio.create_task(client()) for _ in range(16)]
    while len(statuses) < 200:
        await asyncio.sleep(0.01)
    code = await asyncio.to_thread(shim.process.stop, 30)
    await asyncio.wait_for(asyncio.gather(*clients), 30)
    assert code == 0, shim.process.text()
    assert set(statuses) == {202}
    assert not any(isinstance(error, httpx.TimeoutException) for error in errors)
    assert await submissions(rabbitmq_url) == len(answered) + 1  # the fixture has submitted one task
