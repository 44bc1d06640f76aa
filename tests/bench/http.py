"""What is measured on the shim's side: wrk against a real process."""

import asyncio
import json
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from tests.bench.harness import BenchHarness
from tests.bench.measure import Meter, Row
from tests.servers.process import free_ports, wait_until

FASTAPI: Final = ("-m", "uvicorn", "tests.bench.peers:fastapi_app", "--no-access-log")
OURS: Final = ("-m", "ingest", "serve")
_BATCH: Final = 1000


async def shim(harness: BenchHarness) -> list[Row]:
    """POST /v1/tasks at 64 connections, and tasks of 1,000-task batches at 8; 5 s after 2 s of warm-up."""
    return [
        await post(harness, "FastAPI", FASTAPI, "fresh"),
        await post(harness, "ingest serve", OURS, "fresh"),
        await post(harness, "ingest serve, replays", OURS, "replay"),
        await post(harness, "ingest serve, tasks of batches", OURS, "batch", connections=8),
    ]


async def post(harness: BenchHarness, name: str, command: tuple[str, ...], mode: str, connections: int = 64) -> Row:
    """`mode`: `fresh` keys, one key `replay`ed, or a `batch` under a fresh key each, whose items are its tasks."""
    if shutil.which("wrk") is None:
        raise SystemExit("scripts/bench needs wrk for the shim: apt-get install wrk")
    await harness.fresh()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with harness.running(*command, "--port", str(port)) as process:
        await asyncio.to_thread(wait_until, partial(httpx.get, url), name, 30)
        await _wrk(url, mode, 2, connections)
        meter = Meter(harness, process)
        found = await _wrk(url, mode, 5, connections)
        assert not found["failed"], f"{name}: {found['failed']} requests failed"
        items = found["requests"] * (_BATCH if mode == "batch" else 1)
        return meter.row(name, items, found["seconds"], p50=found["p50"], p99=found["p99"])


async def _wrk(url: str, mode: str, seconds: int, connections: int) -> dict[str, float]:
    script = str(Path(__file__).with_name("fresh.lua"))
    tag = str(time.monotonic_ns())
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script, url, "--", mode, tag, "key"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("JSON "))
    found: dict[str, float] = json.loads(line.removeprefix("JSON "))
    return found
