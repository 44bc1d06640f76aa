"""Everything that runs during a test: servers, proxies, the processes under test, clients and the observer."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx

from tests.chaos.cluster import Cluster, off_loop
from tests.chaos.fleet import ROOT, Process
from tests.chaos.history import History
from tests.chaos.observer import Observer
from tests.chaos.proxy import Proxy
from tests.chaos.store import Store
from tests.chaos.workload import POOR, POOR_QUOTA, RICH, WEBHOOK, WITH_QUEUES, Workload
from tests.e2e.processes import run_ingest
from tests.servers.process import free_ports

SHIMS: Final = 2
WORKERS: Final = 3
SETTINGS: Final = {
    # Shorter than the defaults, so that ten minutes are enough for many outages.
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
    """One run.

    Args:
        rng: the source of all randomness of the run.
        rate: submissions per second.
        span: factor for the duration of faults.
        aerospike_nodes: the number of Aerospike nodes.
        earlier: the commit whose code the processes run at first; None for this checkout.
    """

    def __init__(self, rng: random.Random, rate: float, span: float, aerospike_nodes: int, earlier: str | None) -> None:
        self.rng = rng
        self.span = span
        self.history = History()
        self.directory = Path(tempfile.mkdtemp(prefix="ingest-chaos-"))
        self.cluster = Cluster()
        self.store = Store(aerospike_nodes)
        self.broker_proxies = [Proxy(node.amqp) for node in self.cluster.nodes]
        self.env: dict[str, str] = {}
        self.shims: list[Process] = []
        self.workers: list[Process] = []
        self.urls: list[str] = []
        self.workload: Workload
        self.observer: Observer
        self.checkouts = [ROOT]
        """The directories with the code of the processes: the earlier version, if there is one, and this one."""
        if earlier is not None:
            self.checkouts.insert(0, _extract(earlier, self.directory / "earlier"))
        self._rate = rate

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything, collect the results at the end, stop everything."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._start_servers()
            await self._prepare()
            ports = [node.amqp for node in self.cluster.nodes]
            self.observer = Observer(self.history, ports)
            tasks.append(asyncio.create_task(self.observer.run()))
            for process in (*self.shims, *self.workers):
                process.start()
                tasks.append(asyncio.create_task(process.keep_running()))
            await self._until_ready()
            yield
            self._collect_results()
        finally:
            for task in tasks:
                task.cancel()
            for process in (*self.shims, *self.workers):
                process.kill()
            for proxy in (*self.broker_proxies, *self.store.proxies):
                await proxy.stop()
            await off_loop(self.cluster.stop)
            await off_loop(self.store.stop)

    async def hold(self, seconds: float) -> None:
        """Let a fault last this long, scaled by `span`, but at least a second."""
        await asyncio.sleep(max(1.0, seconds * self.span))

    async def successes_during(self, seconds: float) -> int:
        """Hold a fault as `hold` does; return how many attempts succeeded meanwhile."""
        before = self.workload.successes
        await self.hold(seconds)
        return self.workload.successes - before

    @contextlib.asynccontextmanager
    async def store_split(self) -> AsyncIterator[None]:
        """Note when Aerospike nodes may not know of each other; at the end, wait until they are one cluster again."""
        start = time.monotonic()
        try:
            yield
            await off_loop(self.store.wait_until_whole)
        finally:
            if len(self.store.nodes) > 1:
                self.history.splits.append((start, time.monotonic()))

    @contextlib.asynccontextmanager
    async def store_stopped(self) -> AsyncIterator[None]:
        """Stop every Aerospike node (SIGSTOP), and let them continue at the end."""
        async with self.store_split():
            self.store.signal(signal.SIGSTOP)
            try:
                yield
            finally:
                self.store.signal(signal.SIGCONT)

    async def ingest(self, *arguments: str) -> str:
        """Run an operator's command without the proxies; return its output. Raises RuntimeError if it fails."""
        nodes = ",".join(f"127.0.0.1:{node.amqp}" for node in self.cluster.nodes)
        env = self.env | {
            "INGEST_BROKER_URL": f"amqp://guest:guest@{nodes}/",
            "INGEST_MANAGEMENT_URL": f"http://guest:guest@127.0.0.1:{self.cluster.nodes[0].management}",
        }
        completed = await off_loop(lambda: run_ingest(*arguments, env=env, directory=self.directory))
        if completed.returncode:
            raise RuntimeError(f"ingest {' '.join(arguments)}: {completed.stderr[-500:]}")
        return str(completed.stdout)

    async def used(self) -> dict[str, int]:
        """Return the tasks charged this month, by customer."""
        return {
            cust_id: json.loads(await self.ingest("customer", "show", cust_id, "--json"))["used_this_month"]
            for cust_id in (*RICH, POOR)
        }

    async def quiet(self, seconds: float, limit: float) -> bool:
        """Wait until all queues are empty and nothing was seen for `seconds`; return False after `limit` seconds.

        In that case it prints what the queues contain, and the workers print what their tasks wait for.
        """
        end = time.monotonic() + limit
        depths: dict[str, int] = {}
        while time.monotonic() < end:
            last_seen = self.history.seen[-1].at if self.history.seen else 0.0
            if time.monotonic() - last_seen > seconds:
                depths = await off_loop(self.cluster.depths)
                if depths and not any(depths.values()):
                    return True
            await asyncio.sleep(0.5)
        filled = {queue: depth for queue, depth in depths.items() if depth}
        print(f"not quiet after {limit:.0f} s; messages in queues: {filled}", flush=True)
        for queue in filled:
            print(await off_loop(self.cluster.describe, queue), flush=True)
        if filled:
            for process in self.workers:
                os.kill(process.pid, signal.SIGUSR1)
        return False

    async def _start_servers(self) -> None:
        for proxy in (*self.broker_proxies, *self.store.proxies):
            await proxy.start()
        await asyncio.gather(off_loop(self.cluster.start), off_loop(self.store.configure_and_start))

    async def _add_producers(self) -> None:
        """Add an AMQP user for each customer. RabbitMQ 4.3 needs the exchange before its topic permissions."""
        for cust_id in (*RICH, POOR):
            api = self.cluster.api
            await off_loop(api, "PUT", f"users/{cust_id}", {"password": cust_id, "tags": ""})
            permissions = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
            await off_loop(api, "PUT", f"permissions/%2F/{cust_id}", permissions)
            topic = {"exchange": "asg.submissions", "write": r"^(task|batch)\.submitted\.{username}\z", "read": "^$"}
            await off_loop(api, "PUT", f"topic-permissions/%2F/{cust_id}", topic)

    async def _prepare(self) -> None:
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.broker_proxies)
        self.env = SETTINGS | {
            "INGEST_BROKER_URL": f"amqp://guest:guest@{hosts}/",
            "INGEST_STORE_URL": self.store.url,
        }
        await self.ingest("topology", "apply")
        await self._add_producers()
        members = {len(queue["members"]) for queue in await off_loop(self.cluster.api, "GET", "queues/%2F")}
        assert members == {len(self.cluster.nodes)}, members
        keys = {}
        self.history.quotas = dict.fromkeys(RICH, 10_000_000) | {POOR: POOR_QUOTA}
        for cust_id, quota in self.history.quotas.items():
            await self.ingest("customer", "add", cust_id, "--quota", str(quota))
            await self.ingest("webhook", "add", cust_id, WEBHOOK)
            keys[cust_id] = json.loads(await self.ingest("key", "create", cust_id, "--json"))["api_key"]
        await self.ingest("producer", "add", WITH_QUEUES)
        ports = free_ports(SHIMS)
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        source = self.checkouts[0]
        self.shims = [
            Process("serve", f"shim-{number}", self.directory, self.env | {"INGEST_PORT": str(port)}, source)
            for number, port in enumerate(ports)
        ]
        self.workers = [
            Process("work", f"worker-{number}", self.directory, self.env, source) for number in range(WORKERS)
        ]
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

    def _collect_results(self) -> None:
        """Add what the processes have logged and written to the history."""
        history = self.history
        for process in (*self.shims, *self.workers):
            history.complaints += process.unexpected_exits
            history.restarts += process.restarts
            history.peak_memory[process.name] = process.peak_memory
            # Every process logs its start, so this fails if the format of the log is not the expected one.
            if not process.starts:
                history.complaints.append(f"{process.name} has not logged its start, see {process.log}")
            if defects := process.count_events("attempt_crashed") + process.count_events("request_failed"):
                history.complaints.append(f"{process.name} logged {defects} defects, see {process.log}")
        violations = self.directory / "violations"
        if violations.exists():
            history.complaints += violations.read_text().splitlines()
        for path in self.directory.glob("*.bundled"):
            history.bundled += json.loads(path.read_text())
        for path in self.directory.glob("*.in-flight"):
            for queue, count in json.loads(path.read_text()).items():
                history.peak_in_flight[queue] = max(count, history.peak_in_flight.get(queue, 0))


def _extract(commit: str, directory: Path) -> Path:
    """Write the files of a commit into a directory. Raises CalledProcessError."""
    directory.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "--extract"], cwd=directory, input=archive.stdout, check=True)
    return directory
