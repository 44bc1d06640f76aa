"""The servers, the processes under test, and their use of CPU and memory."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.provisioning import apply_topology, bind_producer_queues, declare_producer_queues
from ingest.domain.customers import ApiKey, Customer, hash_api_key, key_id_of
from ingest.domain.ledger import Entry, accepted
from ingest.domain.messages import Message
from ingest.store.aerospike.client import AerospikeClient, parse_url
from ingest.store.aerospike.records import write_all
from ingest.store.aerospike.store import AerospikeStore
from tests.bench import usage
from tests.e2e.contract import TASK as CONTRACT_TASK
from tests.servers import AerospikeServer, RabbitServer

TASK: dict[str, Any] = CONTRACT_TASK | {"consensus_threshold": 3}
_ENTRY = Entry(
    id="",
    cust_id="c",
    created_at=1_775_000_000_000,
    fingerprint=bytes(32),
    retention=604_800,
    owner=f"{uuid.uuid4().hex}.1",
    origin=uuid.uuid4().hex,
)


class BenchHarness:
    """A private RabbitMQ and a private Aerospike."""

    def __init__(self) -> None:
        self.rabbitmq = RabbitServer()
        self.aerospike = AerospikeServer("4G")
        self.directory = Path(tempfile.mkdtemp(prefix="ingest-bench-"))
        self._url = ""
        address = self.aerospike.url.removeprefix("aerospike://").partition("/")[0]
        self.env = {
            "INGEST_STORE_URL": self.aerospike.url,
            "BENCH_AEROSPIKE": address,
            "INGEST_LOG_LEVEL": "warning",
        }

    async def fresh(self) -> str:
        """Create a virtual host with the topology, and the customer `c` with the API key `key`; return the URL."""
        if self._url:
            self.rabbitmq.drop_vhost(self._url)
        self._url = url = self.rabbitmq.new_vhost()
        self.env |= {"INGEST_BROKER_URL": url, "BENCH_AMQP": url}
        broker = RabbitBroker(url)
        await broker.declare()
        store = await AerospikeStore.open(self.aerospike.url)
        await store.save_customer(Customer(cust_id="c", monthly_quota=10**12))
        hashed = hash_api_key("key")
        await store.save_key(ApiKey(key_id=key_id_of(hashed), cust_id="c", key_hash=hashed, created_at=1))
        await store.close()
        await broker.close()
        return url

    async def add_producer(self, cust_id: str) -> None:
        """Give a customer queues of its own as a direct producer. It needs no quota."""
        management_url = self.rabbitmq.management_url.replace("//", "//guest:guest@")
        management = Management(management_url, self._url.rpartition("/")[2])
        broker = RabbitBroker(self._url)
        await apply_topology(broker, management)
        await declare_producer_queues(broker, management, cust_id)
        await bind_producer_queues(broker, cust_id)
        store = await AerospikeStore.open(self.aerospike.url)
        await store.save_customer(Customer(cust_id=cust_id))
        await store.add_producer(cust_id)
        await store.close()

    async def fill_ledger(self, start: int, stop: int) -> None:
        """Add accepted entries with the numbers from `start` to `stop`; they differ only in their ids."""
        client = AerospikeClient(parse_url(self.aerospike.url), 30)
        ops = write_all(accepted(_ENTRY))
        for first in range(start, stop, 4000):
            part = range(first, min(first + 4000, stop), 1000)
            blocks = [[("test", "ledger", f"tsk_{i:026d}") for i in range(at, min(at + 1000, stop))] for at in part]
            codes = await asyncio.gather(*[client.operate(keys, ops, {"ttl": _ENTRY.retention}) for keys in blocks])
            assert not any(code for block in codes for code in block)
        await client.close()

    @contextmanager
    def running(self, *command: str) -> Iterator["Process"]:
        """Run a process under test, and stop it at the end."""
        process = Process(command, self.env, self.directory)
        try:
            yield process
        finally:
            process.stop()

    def close(self) -> None:
        self.rabbitmq.stop()
        self.aerospike.stop()


class Process:
    """A child process with its use of CPU and memory."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], directory: Path) -> None:
        self.output = directory / f"{time.monotonic_ns()}.log"
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command], env={**os.environ, **env}, stdout=output, stderr=output
            )

    def check(self) -> None:
        """Raise RuntimeError with the end of its output if the process has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the process has ended: {self.output.read_text()[-2000:]}")

    def cpu(self) -> float:
        """Return its CPU seconds, user and system, including its children."""
        return usage.cpu(self._process.pid)

    def rss(self, *, peak: bool = False) -> float:
        """Return the resident MB of the largest process, parent or child."""
        return usage.rss(self._process.pid, peak=peak)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()


async def preload(
    url: str, count: int, batch: int = 0, tag: str = "", padding: int = 0, customers: Sequence[str] = ("c",)
) -> None:
    """Publish direct submissions: `count` single tasks, or `count` batches of `batch` tasks each.

    Args:
        url: the broker.
        count: the number of submissions.
        batch: the number of tasks in each batch; 0 for single tasks.
        tag: makes the idempotency keys differ from those of another call.
        padding: the number of bytes that are added to each task.
        customers: who submit, in turn.
    """
    broker = RabbitBroker(url, confirm_timeout=60)
    publisher = await broker.publisher()
    kind = "batch" if batch else "task"
    task = TASK | {"label_spec": TASK["label_spec"] | {"note": "x" * padding}} if padding else TASK
    body = json.dumps({"tasks": [task] * batch} if batch else task).encode()
    chunk = max(1, 2_000_000 // len(body))
    for start in range(0, count, chunk):
        numbers = range(start, min(start + chunk, count))
        messages = [
            Message(
                exchange="asg.submissions",
                routing_key=f"{kind}.submitted.{customers[i % len(customers)]}",
                body=body,
                message_id=f"{url}{tag}{i}",
            )
            for i in numbers
        ]
        assert set(await publisher.publish(messages)) == {"confirmed"}
    await broker.close()


class Depth:
    """Reads over AMQP how many messages a queue holds."""

    def __init__(self, url: str, queue: str) -> None:
        self._url = url
        self._queue = queue

    async def __aenter__(self) -> "Depth":
        self._connection = await aio_pika.connect(self._url)
        self._channel = await self._connection.channel()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def now(self) -> int:
        declared = await self._channel.declare_queue(self._queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def until(self, count: int, process: "Process", seconds: float = 600.0) -> None:
        """Poll until the queue holds `count` messages. Raises RuntimeError if the process ends first, TimeoutError."""
        async with asyncio.timeout(seconds):
            while await self.now() < count:
                process.check()
                await asyncio.sleep(0.02)
