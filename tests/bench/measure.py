"""One measurement: what a process, the broker and the store use while the process handles a number of items."""

import os
import time
from typing import Any

import msgspec

from tests.bench import usage
from tests.bench.harness import BenchHarness, Depth, Process, preload


class Row(msgspec.Struct):
    """The figures of one measurement.

    `rate` is in items per second. `cpu` (the process), `broker` and `store` are CPU microseconds per item. `rss` is the
    peak in MB, `p50` and `p99` are milliseconds. `series` has (items done, MB) during the run.
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
        """The share of the machine's cores that process, broker and store used."""
        return (self.cpu + self.broker + self.store) * self.rate / 1e6 / (os.cpu_count() or 1)


class Meter:
    """Measures processes together from its creation until `row` is called. The memory is that of the first."""

    def __init__(self, harness: BenchHarness, process: Process, *others: Process) -> None:
        self._harness = harness
        self._process = process
        self._others = others
        self._start = time.perf_counter()
        self._used = self._cpu()

    def row(self, name: str, count: float, seconds: float | None = None, **more: Any) -> Row:
        """Return the figures for `count` items. `seconds` replaces the measured time."""
        duration = seconds or time.perf_counter() - self._start
        per_item = [(now - before) / count * 1e6 for now, before in zip(self._cpu(), self._used, strict=True)]
        return Row(name, count / duration, per_item[0], per_item[1], per_item[2], self._process.rss(peak=True), **more)

    def _cpu(self) -> tuple[float, ...]:
        servers = (self._harness.rabbitmq.pid, self._harness.aerospike.pid)
        own = sum(process.cpu() for process in (self._process, *self._others))
        return (own, *[usage.cpu(pid) if pid else 0.0 for pid in servers])


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
    """Measure a process that consumes a full queue, until it has handled `until` items, or all."""
    url = await harness.fresh()
    await preload(url, count, batch, padding=padding)
    return await fill(harness, name, command, until or count * (batch or 1))


async def fill(
    harness: BenchHarness, name: str, command: tuple[str, ...], total: int, queue: str = "consensus.tasks"
) -> Row:
    """Measure a process until it has put `total` messages into the queue; the first tenth is warm-up."""
    series = []
    async with Depth(harness.env["BENCH_AMQP"], queue) as depth:
        with harness.running(*command) as process:
            await depth.until(total // 10, process)
            first, meter = await depth.now(), Meter(harness, process)
            for part in range(2, 11):
                await depth.until(total * part // 10, process)
                series.append((total * part // 10, process.rss()))
            return meter.row(name, total - first, series=series)
