"""Everything that runs: servers, proxies, the processes under test, clients, observers."""

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx

from tests.chaos.cluster import Cluster, off_loop
from tests.chaos.fleet import Process
from tests.chaos.history import History
from tests.chaos.observer import Observer
from tests.chaos.proxy import Proxy
from tests.chaos.store import Store
from tests.chaos.workload import POOR, POOR_QUOTA, RICH, WEBHOOK, Workload
from tests.e2e.processes import run_ingest
from tests.servers.process import free_ports

SHIMS: Final = 2
WORKERS: Final = 3
SETTINGS: Final = {
    # Shorter than the defaults, so that ten minutes see many outages through.
    "INGEST_HEARTBEAT": "3",
    "INGEST_CONFIRM_TIMEOUT": "3",
    "INGEST_STORE_TIMEOUT": "1.5",
    "INGEST_REQUEST_DEADLINE": "8",
    "INGEST_LEASE": "15",
    "INGEST_OUTAGE_HOLD": "15",
    "INGEST_PREFETCH": "100",
    "INGEST_LOG_FORMAT": "json",
}


class World:
    """One run. `span` scales the length of faults."""

    def __init__(self, rng: random.Random, rate: float, span: float) -> None:
        self.rng = rng
        self.span = span
        self.history = History()
        self.directory = Path(tempfile.mkdtemp(prefix="ingest-chaos-"))
        self.cluster = Cluster()
        self.store = Store()
        self.broker_proxies = [Proxy(node.amqp) for node in self.cluster.nodes]
        self.store_proxy = Proxy(self.store.port)
        self.env: dict[str, str] = {}
        self.shims: list[Process] = []
        self.workers: list[Process] = []
        self.urls: list[str] = []
        self.workload: Workload
        self.observer: Observer
        self._rate = rate

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything, stop everything."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._servers()
            await self._deploy()
            ports = [node.amqp for node in self.cluster.nodes]
            self.observer = Observer(self.history, ports)
            tasks.append(asyncio.create_task(self.observer.run()))
            for process in (*self.shims, *self.workers):
                process.start()
                tasks.append(asyncio.create_task(process.keep_running()))
            await self._until_ready()
            yield
            self._take_stock()
        finally:
            for task in tasks:
                task.cancel()
            for process in (*self.shims, *self.workers):
                process.kill()
            for proxy in (*self.broker_proxies, self.store_proxy):
                await proxy.stop()
            await off_loop(self.cluster.stop)
            await off_loop(self.store.stop)

    async def hold(self, seconds: float) -> None:
        """For how long a fault lasts."""
        await asyncio.sleep(max(1.0, seconds * self.span))

    async def ingest(self, *arguments: str) -> str:
        """An operator's command, straight to the servers."""
        nodes = ",".join(f"127.0.0.1:{node.amqp}" for node in self.cluster.nodes)
        env = self.env | {
            "INGEST_BROKER_URL": f"amqp://guest:guest@{nodes}/",
            "INGEST_MANAGEMENT_URL": f"http://guest:guest@127.0.0.1:{self.cluster.nodes[0].management}",
        }
        done = await off_loop(lambda: run_ingest(*arguments, env=env, directory=self.directory))
        if done.returncode:
            raise RuntimeError(f"ingest {' '.join(arguments)}: {done.stderr[-500:]}")
        return str(done.stdout)

    async def used(self) -> dict[str, int]:
        """Tasks charged this month, by customer."""
        return {
            cust_id: json.loads(await self.ingest("customer", "show", cust_id, "--json"))["used_this_month"]
            for cust_id in (*RICH, POOR)
        }

    async def quiet(self, seconds: float, limit: float) -> bool:
        """Wait until the ingest queues are empty and nothing has come out for `seconds`; False: not within `limit`."""
        end = time.monotonic() + limit
        depths: dict[str, int] = {}
        while time.monotonic() < end:
            last = self.history.seen[-1].at if self.history.seen else 0.0
            if time.monotonic() - last > seconds:
                depths = await off_loop(self.cluster.depths)
                if depths and not any(depths.values()):
                    return True
            await asyncio.sleep(0.5)
        left = {name: n for name, n in depths.items() if n}
        print(f"not quiet after {limit:.0f} s: {left}", flush=True)
        for name in left:
            print(await off_loop(self.cluster.holders, name), flush=True)
        if left:
            for process in self.workers:
                os.kill(process.pid, signal.SIGUSR1)
        return False

    async def _servers(self) -> None:
        for proxy in (*self.broker_proxies, self.store_proxy):
            await proxy.start()
        self.store.configure(self.store_proxy.port)
        await asyncio.gather(off_loop(self.cluster.start), off_loop(self.store.start))
        for cust_id in (*RICH, POOR):
            api = self.cluster.api
            await off_loop(api, "PUT", f"users/{cust_id}", {"password": cust_id, "tags": ""})
            permissions = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
            await off_loop(api, "PUT", f"permissions/%2F/{cust_id}", permissions)
            topic = {"exchange": "asg.submissions", "write": r"^(task|batch)\.submitted\.{username}$", "read": "^$"}
            await off_loop(api, "PUT", f"topic-permissions/%2F/{cust_id}", topic)

    async def _deploy(self) -> None:
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.broker_proxies)
        self.env = SETTINGS | {
            "INGEST_BROKER_URL": f"amqp://guest:guest@{hosts}/",
            "INGEST_STORE_URL": f"aerospike://127.0.0.1:{self.store_proxy.port}/test",
        }
        await self.ingest("topology", "apply")
        members = {len(each["members"]) for each in await off_loop(self.cluster.api, "GET", "queues/%2F")}
        assert members == {len(self.cluster.nodes)}, members
        keys = {}
        self.history.quotas = dict.fromkeys(RICH, 10_000_000) | {POOR: POOR_QUOTA}
        for cust_id, quota in self.history.quotas.items():
            await self.ingest("customer", "add", cust_id, "--quota", str(quota))
            await self.ingest("webhook", "add", cust_id, WEBHOOK)
            keys[cust_id] = json.loads(await self.ingest("key", "create", cust_id, "--json"))["api_key"]
        ports = free_ports(SHIMS)
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.shims = [
            Process("serve", f"shim-{i}", self.directory, self.env | {"INGEST_PORT": str(port)})
            for i, port in enumerate(ports)
        ]
        self.workers = [Process("work", f"worker-{i}", self.directory, self.env) for i in range(WORKERS)]
        amqp = [node.amqp for node in self.cluster.nodes]
        self.workload = Workload(self.history, self.rng, self._rate, self.urls, keys, amqp)

    async def _until_ready(self) -> None:
        async with asyncio.timeout(60), httpx.AsyncClient() as client:
            for url in self.urls:
                while True:
                    with contextlib.suppress(httpx.HTTPError):
                        if (await client.get(f"{url}/readyz", timeout=5)).status_code == 200:
                            break
                    await asyncio.sleep(0.2)

    def _take_stock(self) -> None:
        history = self.history
        for process in (*self.shims, *self.workers):
            history.complaints += process.deaths
            history.restarts += process.restarts
            history.peak_memory[process.name] = process.peak
            if defects := process.lines('"event":"attempt_crashed"') + process.lines('"event":"request_failed"'):
                history.complaints.append(f"{process.name} logged {defects} defects, see {process.log}")
        violations = self.directory / "violations"
        if violations.exists():
            history.complaints += violations.read_text().splitlines()
        for path in self.directory.glob("*.most"):
            for queue, count in json.loads(path.read_text()).items():
                history.most[queue] = max(count, history.most.get(queue, 0))
