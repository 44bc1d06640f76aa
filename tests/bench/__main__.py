"""The benchmark. Everything runs on one machine in one run: ratios count, absolute figures do not."""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import msgspec

from tests.bench.house import Depth, House, preload
from tests.servers.process import free_ports, wait_until

OURS = ("-m", "ingest", "work")
PLAIN = ("-m", "tests.bench.peers", "plain")
FASTSTREAM = ("-m", "tests.bench.peers", "faststream")
LIMIT = 600.0


class Row(msgspec.Struct):
    """One measurement. `rate` per second, `cpu` in microseconds an item, times in ms, `rss` in MB."""

    name: str
    rate: float
    cpu: float
    rss: float
    p50: float = 0.0
    p99: float = 0.0


async def consume(house: House, name: str, command: tuple[str, ...], count: int, batch: int = 0) -> Row:
    """A full queue is worked off; the first tenth is warm-up."""
    url = await house.fresh()
    await preload(url, count, batch)
    total = count * (batch or 1)
    async with Depth(url, "consensus.tasks") as depth:
        with house.running(*command) as process:
            await depth.until(total // 10, LIMIT)
            first, start, cpu = await depth.now(), time.perf_counter(), process.cpu()
            await depth.until(total, LIMIT)
            seconds, done = time.perf_counter() - start, total - first
            return Row(name, done / seconds, (process.cpu() - cpu) / done * 1e6, process.peak_rss())


async def worker(house: House) -> list[Row]:
    """Single submissions: claim, event out, ack."""
    return [
        await consume(house, "plain aio-pika", PLAIN, 6_000),
        await consume(house, "FastStream", FASTSTREAM, 4_000),
        await consume(house, "ingest work", OURS, 40_000),
    ]


async def batch(house: House) -> list[Row]:
    """Tasks of 1,000-task batches."""
    return [await consume(house, "ingest work, tasks", OURS, 150, 1000)]


async def backlog(house: House) -> list[Row]:
    """CPU a message as the backlog grows."""
    sizes = (1_000, 10_000, 100_000)
    return [await consume(house, f"ingest work, backlog {size:,}", OURS, size) for size in sizes]


async def scale(house: House) -> list[Row]:
    """More processes."""
    return [
        await consume(house, f"ingest work --processes {n}", (*OURS, "--processes", str(n)), 40_000) for n in (1, 2, 4)
    ]


async def shim(house: House) -> list[Row]:
    """POST /v1/tasks at 64 connections, 5 s after 2 s of warm-up."""
    if shutil.which("wrk") is None:
        raise SystemExit("scripts/bench shim needs wrk: apt-get install wrk")
    rows = []
    for name, mode in (("FastAPI", "fresh"), ("ingest serve", "fresh"), ("ingest serve, replays", "replay")):
        await house.fresh()
        (port,) = free_ports(1)
        peer = ("-m", "uvicorn", "tests.bench.peers:fastapi_app", "--no-access-log", "--port", str(port))
        ours = ("-m", "ingest", "serve", "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        with house.running(*(peer if name == "FastAPI" else ours)) as process:
            await asyncio.to_thread(wait_until, partial(httpx.get, url), name, 30)
            await _wrk(url, mode, 2)
            cpu = process.cpu()
            found = await _wrk(url, mode, 5)
            used = (process.cpu() - cpu) / found["requests"] * 1e6
            rate = found["requests"] / found["seconds"]
            assert not found["failed"], f"{name}: {found['failed']} requests failed"
            rows.append(Row(name, rate, used, process.peak_rss(), found["p50"], found["p99"]))
    return rows


async def _wrk(url: str, mode: str, seconds: int) -> dict[str, float]:
    script = str(Path(__file__).with_name("fresh.lua"))
    tag = str(time.monotonic_ns())
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "-s", script, url, "--", mode, tag, "key"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("JSON "))
    found: dict[str, float] = json.loads(line.removeprefix("JSON "))
    return found


BENCHES: dict[str, Callable[[House], Awaitable[list[Row]]]] = {
    "worker": worker,
    "shim": shim,
    "batch": batch,
    "backlog": backlog,
    "scale": scale,
}


async def run(names: list[str], rounds: int) -> dict[str, list[Row]]:
    """Medians of each bench over its rounds."""
    house = House()
    results = {}
    try:
        for name in names:
            measured = [await BENCHES[name](house) for _ in range(rounds)]
            results[name] = [_median([rows[i] for rows in measured]) for i in range(len(measured[0]))]
            _show(name, results[name])
    finally:
        house.close()
    return results


def _median(rows: list[Row]) -> Row:
    fields = ("rate", "cpu", "rss", "p50", "p99")
    return Row(rows[0].name, *[statistics.median(getattr(row, field) for row in rows) for field in fields])


def _show(name: str, rows: list[Row]) -> None:
    print(f"\n{name}: {(BENCHES[name].__doc__ or '').strip()}")
    print(f"{'':32} {'per s':>9} {'x first':>8} {'CPU us':>8} {'RSS MB':>7} {'p50 ms':>7} {'p99 ms':>7}")
    for row in rows:
        times = f"{row.p50:7.1f} {row.p99:7.1f}" if row.p99 else ""
        ratio = row.rate / rows[0].rate
        print(f"{row.name:32} {row.rate:9,.0f} {ratio:8.1f} {row.cpu:8.0f} {row.rss:7.0f} {times}", flush=True)


def main() -> None:
    """Parse the arguments and run."""
    known = ", ".join(BENCHES)
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("bench", nargs="*", choices=[[], *BENCHES], help=f"{known}; default: the first three")
    parser.add_argument("--rounds", type=int, default=3, help="medians are of so many rounds")
    parser.add_argument("--json", type=Path, help="save the figures in this file")
    given = parser.parse_args()
    if unknown := set(given.bench) - set(BENCHES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {known}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, rounds: {given.rounds}")
    results = asyncio.run(run(given.bench or ["worker", "shim", "batch"], given.rounds))
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))


if __name__ == "__main__":
    main()
