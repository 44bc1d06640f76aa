"""What is measured on the worker's side, and how both sides scale."""

from typing import Final

from tests.bench import http
from tests.bench.harness import BenchHarness, Depth, preload
from tests.bench.measure import Meter, Row, consume, fill

OURS: Final = ("-m", "ingest", "work")
PLAIN: Final = ("-m", "tests.bench.peers", "plain")
FASTSTREAM: Final = ("-m", "tests.bench.peers", "faststream")
RELAY: Final = ("-m", "tests.bench.raw", "relay", "1")
PUBLISH: Final = ("-m", "tests.bench.raw", "publish")  # how many connections follows
BACKLOG: Final = 40_000
"""Messages that all find. None comes to the end: with nothing more to deliver RabbitMQ has less to do."""


async def worker(harness: BenchHarness) -> list[Row]:
    """Single submissions: claim, event out, ack. The raw socket relays without claims, its frames made before."""
    return [
        await consume(harness, "plain aio-pika", PLAIN, BACKLOG, until=BACKLOG // 2),
        await consume(harness, "FastStream", FASTSTREAM, BACKLOG, until=BACKLOG // 4),
        await consume(harness, "ingest work", OURS, BACKLOG, until=BACKLOG * 9 // 10),
        await consume(harness, "raw socket: the broker's limit", RELAY, BACKLOG, until=BACKLOG * 9 // 10),
    ]


async def batch(harness: BenchHarness) -> list[Row]:
    """Tasks of 1,000-task batches. The raw sockets only publish, their frames made before."""
    limits = []
    for count, name in enumerate(("raw socket: one connection's limit", "two raw sockets"), 1):
        await harness.fresh()
        limits.append(await fill(harness, name, (*PUBLISH, str(count)), 150_000))
    return [*limits, await consume(harness, "ingest work, tasks", OURS, 150, 1000)]


async def backlog(harness: BenchHarness) -> list[Row]:
    """CPU a message as backlog and ledger grow; 40,000 messages each."""
    rows = [await _small_backlog(harness, size) for size in (1_000, 10_000)]
    rows += [await consume(harness, f"backlog {size:,}", OURS, size, until=40_000) for size in (100_000, 1_000_000)]
    before = 0
    for keys in (0, 1_000_000, 5_000_000):
        await harness.fill_ledger(before, keys)
        before = keys
        rows.append(await consume(harness, f"ledger +{keys:,} keys", OURS, 40_000))
    return rows


async def _small_backlog(harness: BenchHarness, size: int) -> Row:
    """Filled again and again. Producer and broker are not told apart here, so only the process counts."""
    url = await harness.fresh()
    async with Depth(url, "consensus.tasks") as depth:
        with harness.running(*OURS) as process:
            await preload(url, size, tag="warm")
            await depth.until(size, process)
            meter = Meter(harness, process)
            for part in range(1, 40_000 // size + 1):
                await preload(url, size, tag=f"{part}.")
                await depth.until(size * (part + 1), process)
            row = meter.row(f"backlog {size:,}", 40_000 // size * size)
            row.rate = row.broker = row.store = 0.0
            return row


async def memory(harness: BenchHarness) -> list[Row]:
    """Peak RSS on batches, and RSS along a million messages."""
    return [
        await consume(harness, "1,000-task batches", OURS, 200, 1000),
        await consume(harness, "1,000-task batches of 8 MiB", OURS, 30, 1000, padding=8_000),
        await consume(harness, "1,000,000 singles", OURS, 1_000_000),
    ]


async def scale(harness: BenchHarness) -> list[Row]:
    """More processes: the broker and the two cores are shared."""
    singles = [
        await consume(harness, f"singles, --processes {n}", (*OURS, "--processes", str(n)), 40_000) for n in (1, 2, 4)
    ]
    batches = [
        await consume(harness, f"batches, --processes {n}", (*OURS, "--processes", str(n)), 150, 1000)
        for n in (1, 2, 4)
    ]
    shims = [
        await http.post(harness, f"serve --workers {n}", (*http.OURS, "--workers", str(n)), "fresh") for n in (1, 2, 4)
    ]
    return singles + batches + shims


async def telemetry(harness: BenchHarness) -> list[Row]:
    """What metrics and traces add to single submissions; spans are made, not sent."""
    metrics = {"INGEST_METRICS_PORT": "0"}
    traces = {"INGEST_TRACING": "true", "OTEL_TRACES_EXPORTER": "none"}
    plain = harness.env
    rows = []
    for name, more in (("neither", {}), ("metrics", metrics), ("metrics and traces", metrics | traces)):
        harness.env = plain | more
        rows.append(await consume(harness, name, OURS, 40_000))
    harness.env = plain
    return rows
