"""One measurement: a process works off a queue; what it takes of the process itself, the broker and the store."""

import os
import time
from typing import Any

import msgspec

from tests.bench import usage
from tests.bench.harness import BenchHarness, Depth, Process, preload


class Row(msgspec.Struct):
    """`rate` per second; CPU in microseconds an item, of the process, RabbitMQ and Aerospike; times in ms.

    `rss` is the peak in MB, `series` (items done, MB) along the way.
    """

    name: str
    rate: float
    cpu: float
    broker: float
    store: float
    rss: float
    p50: float = 0.0
    p99: float = 0.0
    series: list[tuple[int, float]] = []

    @property
    def busy(self) -> float:
        """The share of this machine's cores that all three took."""
        return (self.cpu + self.broker + self.store) * self.rate / 1e6 / (os.cpu_count() or 1)


class Meter:
    """Runs from its making to `row`."""

    def __init__(self, harness: BenchHarness, process: Process) -> None:
        self._house = harness
        self._process = process
        self._start = time.perf_counter()
        self._used = self._cpu()

    def row(self, name: str, count: float, seconds: float | None = None, **more: Any) -> Row:
        """What each of `count` items has taken."""
        took = seconds or time.perf_counter() - self._start
        spent = [(now - before) / count * 1e6 for now, before in zip(self._cpu(), self._used, strict=True)]
        return Row(name, count / took, spent[0], spent[1], spent[2], self._process.rss(peak=True), **more)

    def _cpu(self) -> tuple[float, ...]:
        servers = (self._house.rabbitmq.pid, self._house.aerospike.pid)
        return (self._process.cpu(), *[usage.cpu(pid) if pid else 0.0 for pid in servers])


async def consume(
    harness: BenchHarness,
    name: str,
    command: tuple[str, ...],
    count: int,
    batch: int = 0,
    *,
    until: int = 0,
    padding: int = 0,
) -> Row:
    """A full queue is worked off, whole or `until` so many; the first tenth is warm-up."""
    url = await harness.fresh()
    await preload(url, count, batch, padding=padding)
    return await fill(harness, name, command, until or count * (batch or 1))


async def fill(harness: BenchHarness, name: str, command: tuple[str, ...], total: int) -> Row:
    """A process fills the consensus queue; the first tenth is warm-up."""
    series = []
    async with Depth(harness.env["BENCH_AMQP"], "consensus.tasks") as depth:
        with harness.running(*command) as process:
            await depth.until(total // 10, process)
            first, meter = await depth.now(), Meter(harness, process)
            for part in range(2, 11):
                await depth.until(total * part // 10, process)
                series.append((total * part // 10, process.rss()))
            return meter.row(name, total - first, series=series)
