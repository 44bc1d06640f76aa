"""The shim while what it needs is in trouble, and while it is told to stop: a real process, real servers."""

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.bench.harness import Depth
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports, wait_until

ANSWERS = 12.0
"""Seconds within which everything is answered: the deadline of a request, and some for a busy machine."""


class Shim:
    """`ingest serve` with one customer."""

    def __init__(self, process: Ingest, url: str, key: str) -> None:
        self.process = process
        self.url = url
        self.client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=ANSWERS)
        self.headers = dict(self.client.headers)

    def post(self, key: str) -> httpx.Response:
        return self.client.post("/v1/tasks", json=TASK | {"idempotency_key": key})

    def recovers(self, key: str) -> None:
        """Until it accepts again, by itself."""
        wait_until(lambda: self.post(key).status_code in (200, 202), "the shim's recovery", 30)
        wait_ready(self.url)


@pytest.fixture
def shim(rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path) -> Iterator[Shim]:
    env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_STORE_URL": aerospike.url, "INGEST_CONFIRM_TIMEOUT": "3"}
    cust = f"trouble{os.urandom(4).hex()}"
    assert run_ingest("customer", "add", cust, env=env, directory=tmp_path).returncode == 0
    created = run_ingest("key", "create", cust, "--json", env=env, directory=tmp_path)
    (port,) = free_ports(1)
    with Ingest("serve", "--port", str(port), directory=tmp_path, env=env) as process:
        url = f"http://127.0.0.1:{port}"
        wait_ready(url)
        shim = Shim(process, url, httpx.Response(200, text=created.stdout).json()["api_key"])
        assert shim.post("first").status_code == 202
        yield shim
        shim.client.close()


def in_trouble(shim: Shim, key: str) -> None:
    """A submission is 503 with Retry-After within its time; it is not ready, but alive, and reads need no server."""
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
    """What the management API's statistics say."""
    return any(node["mem_alarm"] for node in rabbitmq.api("GET", "nodes"))


def test_a_store_that_hangs(shim: Shim, aerospike: AerospikeServer) -> None:
    """Aerospike neither answers nor closes: 503 in time, never a hang; afterwards the same key is accepted once."""
    if not aerospike.controllable:
        pytest.skip("this Aerospike cannot be paused")
    aerospike.pause()
    try:
        in_trouble(shim, "k")
        in_trouble(shim, "k")
    finally:
        aerospike.resume()
    shim.recovers("k")
    assert shim.post("k").json()["idempotent"] is True


def test_a_broker_that_hangs(shim: Shim, rabbitmq: RabbitServer) -> None:
    """RabbitMQ neither confirms nor closes: 503, no 2xx without a confirm; replays of what was accepted go on.

    The shim is not ready, at once: a load balancer need not wait for the heartbeat to be missed.
    """
    if not rabbitmq.controllable:
        pytest.skip("this RabbitMQ cannot be paused")
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
    shim.recovers("k")
    assert shim.client.get("/readyz").status_code == 200


def test_a_memory_alarm(shim: Shim, rabbitmq: RabbitServer) -> None:
    """RabbitMQ blocks publishers: 503 at once, replays go on, and when the alarm is over so is the trouble."""
    if not rabbitmq.controllable:
        pytest.skip("this RabbitMQ's memory limit is not ours to set")
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        wait_until(lambda: shim.post(f"k{time.monotonic_ns()}").status_code == 503, "the alarm", 20)
        in_trouble(shim, "k")
        assert shim.post("first").status_code == 200
        wait_until(lambda: alarmed(rabbitmq), "the alarm in the statistics, which are seconds late", 30)
    finally:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.6")  # as in deploy/rabbitmq/rabbitmq.conf
    shim.recovers("k")
    wait_until(lambda: not alarmed(rabbitmq), "the end of the alarm, for the tests that follow", 30)


async def test_sigterm_under_load_fails_nobody(shim: Shim, rabbitmq_url: str) -> None:
    """Whatever was taken is answered 202, and nobody waits in vain: who was not taken is told so by the connection.

    A request may be written to a kept connection in the moment in which it is closed: that one was never taken, and a
    client repeats it (RFC 9112, section 9.3.1); with its key that is safe. Exit code 0.
    """
    statuses: list[int] = []
    ends: list[httpx.TransportError] = []
    numbers = itertools.count()
    answered: set[str] = set()

    async def client() -> None:
        async with httpx.AsyncClient(base_url=shim.url, headers=shim.headers, timeout=ANSWERS) as http:
            while True:
                key = f"load-{next(numbers)}"
                try:
                    answer = await http.post("/v1/tasks", json=TASK | {"idempotency_key": key})
                except httpx.TransportError as error:
                    ends.append(error)
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
    assert not any(isinstance(error, httpx.TimeoutException) for error in ends)
    async with Depth(rabbitmq_url, "ingest.tasks") as depth:
        assert await depth.now() == len(answered) + 1  # that of the fixture
