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

from tests.bench import benches
from tests.bench.house import House
from tests.bench.measure import Meter, Row
from tests.servers.process import free_ports, wait_until


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
            meter = Meter(house, process)
            found = await _wrk(url, mode, 5)
            assert not found["failed"], f"{name}: {found['failed']} requests failed"
            times = {"p50": found["p50"], "p99": found["p99"]}
            rows.append(meter.row(name, found["requests"], found["seconds"], **times))
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
    "worker": benches.worker,
    "shim": shim,
    "batch": benches.batch,
    "backlog": benches.backlog,
    "memory": benches.memory,
    "scale": benches.scale,
    "telemetry": benches.telemetry,
}
LONG = frozenset({"backlog", "memory", "scale"})
"""Minutes each: one round is enough."""


async def run(names: list[str], rounds: int) -> dict[str, list[Row]]:
    """Medians of each bench over its rounds."""
    house = House()
    results = {}
    try:
        for name in names:
            measured = [await BENCHES[name](house) for _ in range(1 if name in LONG else rounds)]
            results[name] = [_median([rows[i] for rows in measured]) for i in range(len(measured[0]))]
            _show(name, results[name])
    finally:
        house.close()
    return results


def _median(rows: list[Row]) -> Row:
    fields = ("rate", "cpu", "broker", "store", "rss", "p50", "p99")
    medians = {field: statistics.median(getattr(row, field) for row in rows) for field in fields}
    return msgspec.structs.replace(rows[-1], **medians)


def _show(name: str, rows: list[Row]) -> None:
    print(f"\n{name}: {(BENCHES[name].__doc__ or '').strip()}")
    print(f"{'':32} {'':>9} {'':>8} {'CPU us each, of':>26}")
    heads = ("per s", "x first", "itself", "RabbitMQ", "Aerospike", "cores", "RSS MB", "p50 ms", "p99 ms")
    print(f"{'':32} {heads[0]:>9} {heads[1]:>8}" + "".join(f"{head:>10}" for head in heads[2:]))
    for row in rows:
        ratio = row.rate / rows[0].rate if rows[0].rate else 0.0
        figures = [f"{each:,.1f}" for each in (row.cpu, row.broker, row.store)]
        figures += [f"{row.busy:.0%}", f"{row.rss:,.0f}", *[f"{ms:,.1f}" if ms else "" for ms in (row.p50, row.p99)]]
        print(f"{row.name:32} {row.rate:9,.0f} {ratio:8.1f}" + "".join(f"{each:>10}" for each in figures), flush=True)


def main() -> None:
    """Parse the arguments and run."""
    known = ", ".join(BENCHES)
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("bench", nargs="*", choices=[[], *BENCHES], help=f"{known}; default: the first three")
    parser.add_argument(
        "--rounds", type=int, default=3, help="medians are of so many rounds; backlog, memory, scale: one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="save a picture")
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, rounds: {given.rounds}")
    results = asyncio.run(run(given.bench or ["worker", "shim", "batch"], given.rounds))
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    if given.plot:
        from tests.bench import plot

        plot.save(results, given.plot)


if __name__ == "__main__":
    main()
