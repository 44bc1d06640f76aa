"""The benchmark. Everything runs on one machine in one run: ratios count, absolute figures do not."""

import argparse
import asyncio
import os
import platform
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from tests.bench import benches, http
from tests.bench.harness import BenchHarness
from tests.bench.measure import Row

BENCHES: dict[str, Callable[[BenchHarness], Awaitable[list[Row]]]] = {
    "worker": benches.worker,
    "shim": http.shim,
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
