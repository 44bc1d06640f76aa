"""Runs the benchmarks. Everything runs on one machine, so compare the ratios, not the absolute figures."""

import argparse
import asyncio
import os
import platform
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from tests.bench import benches, http
from tests.bench.fairness import fairness
from tests.bench.harness import BenchHarness
from tests.bench.measure import Row

BENCHES: dict[str, Callable[[BenchHarness], Awaitable[list[Row]]]] = {
    "worker": benches.worker,
    "shim": http.shim,
    "batch": benches.batch,
    "producer": benches.producer,
    "fairness": fairness,
    "backlog": benches.backlog,
    "memory": benches.memory,
    "scale": benches.scale,
    "telemetry": benches.telemetry,
}
LONG = frozenset({"fairness", "backlog", "memory", "scale"})
"""Benches that take minutes and run for one round only."""


async def run(names: list[str], rounds: int) -> dict[str, list[Row]]:
    """Run benches, and return the medians of each over its rounds."""
    harness = BenchHarness()
    results = {}
    try:
        for name in names:
            measured = [await BENCHES[name](harness) for _ in range(1 if name in LONG else rounds)]
            results[name] = [_median([rows[i] for rows in measured]) for i in range(len(measured[0]))]
            _show(name, results[name])
    finally:
        harness.close()
    return results


def _median(rows: list[Row]) -> Row:
    fields = ("rate", "cpu", "broker", "store", "rss", "p50", "p99")
    medians = {field: statistics.median(getattr(row, field) for row in rows) for field in fields}
    return msgspec.structs.replace(rows[-1], **medians)


def _show(name: str, rows: list[Row]) -> None:
    print(f"\n{name}: {(BENCHES[name].__doc__ or '').strip()}")
    print(f"{'':32} {'':>9} {'':>8} {'CPU us per item':>26}")
    columns = ("per s", "x first", "process", "RabbitMQ", "Aerospike", "cores", "RSS MB", "p50 ms", "p99 ms")
    print(f"{'':32} {columns[0]:>9} {columns[1]:>8}" + "".join(f"{column:>10}" for column in columns[2:]))
    for row in rows:
        ratio = row.rate / rows[0].rate if rows[0].rate else 0.0
        figures = [f"{microseconds:,.1f}" for microseconds in (row.cpu, row.broker, row.store)]
        figures += [f"{row.busy:.0%}", f"{row.rss:,.0f}", *[f"{ms:,.1f}" if ms else "" for ms in (row.p50, row.p99)]]
        cells = "".join(f"{figure:>10}" for figure in figures)
        print(f"{row.name:32} {row.rate:9,.0f} {ratio:8.1f}{cells}", flush=True)


def main() -> None:
    """Parse the arguments and run the benches."""
    known = ", ".join(BENCHES)
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("bench", nargs="*", choices=[[], *BENCHES], help=f"{known}; default: the first three")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="rounds per median (default 3); fairness, backlog, memory and scale run once",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="save charts as a picture")
    arguments = parser.parse_args()
    python = platform.python_version()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {python}, rounds: {arguments.rounds}")
    results = asyncio.run(run(arguments.bench or ["worker", "shim", "batch"], arguments.rounds))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    if arguments.plot:
        from tests.bench import plot

        plot.save(results, arguments.plot)


if __name__ == "__main__":
    main()
