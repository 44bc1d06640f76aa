"""The benches of the shim: wrk sends requests to a real process."""

import asyncio
import json
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from ingest.domain.topology import CONSENSUS_TASKS
from tests.bench.harness import BenchHarness, Depth
from tests.bench.measure import Meter, Row
from tests.servers.process import free_ports, wait_until

FASTAPI: Final = ("-m", "uvicorn", "tests.bench.peers:fastapi_app", "--no-access-log")
SERVE: Final = ("-m", "ingest", "serve")
_BATCH_SIZE: Final = 1000


async def shim(harness: BenchHarness) -> list[Row]:
    """POST /v1/tasks on 64 connections, and tasks of 1,000-task batches on 8; 5 s after 2 s of warm-up."""
    return [
        await post(harness, "FastAPI", FASTAPI, "fresh"),
        await post(harness, "ingest serve", SERVE, "fresh"),
        await post(harness, "ingest serve, replays", SERVE, "replay"),
        await post(harness, "ingest serve, tasks of batches", SERVE, "batch", connections=8),
        await to_event(harness, "ingest serve and ingest work, POST to event"),
    ]


async def post(harness: BenchHarness, name: str, command: tuple[str, ...], mode: str, connections: int = 64) -> Row:
    """Measure one server. `mode`: `fresh` (a new key per task), `replay` (one key) or `batch` (a new key per batch)."""
    await harness.fresh()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with harness.running(*command, "--port", str(port)) as process:
        await asyncio.to_thread(wait_until, partial(httpx.get, url), name, 30)
        await wrk(url, mode, 2, connections)
        meter = Meter(harness, process)
        result = await wrk(url, mode, 5, connections)
        assert not result["failed"], f"{name}: {result['failed']} requests failed"
        items = result["requests"] * (_BATCH_SIZE if mode == "batch" else 1)
        return meter.row(name, items, result["seconds"], p50=result["p50"], p99=result["p99"])


async def to_event(harness: BenchHarness, name: str) -> Row:
    """Measure one shim and one worker together, from requests with a new key each to their events."""
    url = await harness.fresh()
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    with harness.running(*SERVE, "--port", str(port)) as shim, harness.running("-m", "ingest", "work") as worker:
        await asyncio.to_thread(wait_until, partial(httpx.get, address), name, 30)
        async with Depth(url, CONSENSUS_TASKS) as depth:
            warm_up = await wrk(address, "fresh", 2, 64)
            meter = Meter(harness, shim, worker)
            result = await wrk(address, "fresh", 5, 64)
            await depth.until(int(warm_up["requests"] + result["requests"]), worker)
        return meter.row(name, result["requests"], result["seconds"], p50=result["p50"], p99=result["p99"])


async def wrk(url: str, mode: str, seconds: float, connections: int) -> dict[str, float]:
    """Send requests of customer `c` and return what `fresh.lua` prints; `mode` as for `post`."""
    if shutil.which("wrk") is None:
        raise SystemExit("scripts/bench needs wrk for the shim: apt-get install wrk")
    script = str(Path(__file__).with_name("fresh.lua"))
    tag = str(time.monotonic_ns())
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", script, url, "--", mode, tag, "key"]
    completed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    line = next(line for line in completed.stdout.splitlines() if line.startswith("JSON "))
    result: dict[str, float] = json.loads(line.removeprefix("JSON "))
    return result
