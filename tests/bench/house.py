"""The servers, the processes under test, and what they use."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika

from ingest.broker.rabbitmq import RabbitBroker
from ingest.domain.customers import ApiKey, Customer, hash_api_key, key_id_of
from ingest.domain.messages import Message
from ingest.store.aerospike import AerospikeStore
from tests.servers import AerospikeServer, RabbitServer

TASK: dict[str, Any] = {
    "type": "text_classification",
    "data_url": "https://cdn.example.com/doc.txt",
    "label_spec": {"question": "Document category?", "options": ["invoice", "receipt", "other"]},
    "consensus_threshold": 3,
}
_TICK = os.sysconf("SC_CLK_TCK")


class House:
    """A private RabbitMQ and a private Aerospike."""

    def __init__(self) -> None:
        self.rabbitmq = RabbitServer()
        self.aerospike = AerospikeServer("4G")
        self.directory = Path(tempfile.mkdtemp(prefix="ingest-bench-"))
        address = self.aerospike.url.removeprefix("aerospike://").partition("/")[0]
        self.env = {
            "INGEST_STORE_URL": self.aerospike.url,
            "BENCH_AEROSPIKE": address,
            "INGEST_LOG_LEVEL": "warning",
        }

    async def fresh(self) -> str:
        """A new virtual host with the topology, and the customer `c` with the API key `key`; its URL."""
        url = self.rabbitmq.new_vhost()
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

    @contextmanager
    def running(self, *command: str) -> Iterator["Process"]:
        """A process under test."""
        process = Process(command, self.env, self.directory)
        try:
            yield process
        finally:
            process.stop()

    def close(self) -> None:
        self.rabbitmq.stop()
        self.aerospike.stop()


class Process:
    """A child process and what it has used so far."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], directory: Path) -> None:
        self.output = directory / f"{time.monotonic_ns()}.log"
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command], env={**os.environ, **env}, stdout=output, stderr=output
            )

    def cpu(self) -> float:
        """Seconds, user and system, children included."""
        return sum(self._cpu(pid) for pid in self._pids())

    def peak_rss(self) -> float:
        """MB."""
        peaks = []
        for pid in self._pids():
            status = Path(f"/proc/{pid}/status").read_text()
            peaks.append(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024)
        return max(peaks)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _pids(self) -> list[int]:
        own = self._process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]

    @staticmethod
    def _cpu(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK


async def preload(url: str, count: int, batch: int = 0, tag: str = "") -> None:
    """Direct submissions into the ingest queues: `count` singles, or batches of `batch` tasks each."""
    broker = RabbitBroker(url, confirm_timeout=60)
    publisher = await broker.publisher()
    kind = "batch" if batch else "task"
    body = json.dumps({"tasks": [TASK] * batch} if batch else TASK).encode()
    size = 10 if batch else 2000
    for start in range(0, count, size):
        part = range(start, min(start + size, count))
        messages = [
            Message(
                exchange="asg.submissions", routing_key=f"{kind}.submitted.c", body=body, message_id=f"{url}{tag}{i}"
            )
            for i in part
        ]
        assert set(await publisher.publish(messages)) == {"confirmed"}
    await broker.close()


class Depth:
    """How many messages a queue holds, asked over AMQP."""

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

    async def until(self, count: int, seconds: float) -> None:
        """Poll until there are `count`."""
        async with asyncio.timeout(seconds):
            while await self.now() < count:
                await asyncio.sleep(0.02)
