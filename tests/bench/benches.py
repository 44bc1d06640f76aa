"""The benches of the worker, and those that measure how worker and shim scale."""

from typing import Final

from ingest.broker.bundles.broker import BundlingBroker
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.admitted import Admitted, to_message
from ingest.domain.submissions import batch_submission, task_submission
from ingest.domain.topology import BULK_QUEUES, DEFAULT, INGEST_TASKS, route_to
from tests.bench import http
from tests.bench.harness import TASK, BenchHarness, Depth, preload
from tests.bench.measure import Meter, Row, consume, fill

WORK: Final = ("-m", "ingest", "work")
PLAIN: Final = ("-m", "tests.bench.peers", "plain")
FASTSTREAM: Final = ("-m", "tests.bench.peers", "faststream")
RELAY: Final = ("-m", "tests.bench.raw", "relay", "1")
PUBLISH: Final = ("-m", "tests.bench.raw", "publish")  # the next argument is the number of connections
PRODUCER: Final = ("-m", "tests.bench.producers")  # the next argument says how it publishes
BACKLOG: Final = 40_000
"""Messages that wait when a worker starts. No worker empties the queue, since RabbitMQ then has less to do."""


async def worker(harness: BenchHarness) -> list[Row]:
    """Single submissions: claim, publish, ack. The raw socket claims nothing, and its frames are encoded in advance."""
    return [
        await consume(harness, "plain aio-pika", PLAIN, BACKLOG, until=BACKLOG // 2),
        await consume(harness, "FastStream", FASTSTREAM, BACKLOG, until=BACKLOG // 4),
        await consume(harness, "ingest work", WORK, BACKLOG, until=BACKLOG * 9 // 10),
        await consume(harness, "raw socket: the broker's limit", RELAY, BACKLOG, until=BACKLOG * 9 // 10),
    ]


async def batch(harness: BenchHarness) -> list[Row]:
    """Tasks of 1,000-task batches. The raw sockets only publish frames encoded in advance."""
    limits = []
    for count, name in enumerate(("raw socket: one connection's limit", "two raw sockets"), 1):
        await harness.fresh()
        limits.append(await fill(harness, name, (*PUBLISH, str(count)), 150_000))
    return [*limits, await consume(harness, "ingest work, tasks", WORK, 150, 1000)]


async def producer(harness: BenchHarness) -> list[Row]:
    """Single tasks that a direct producer publishes with confirms. The peer awaits each publish of aio-pika."""
    rows = []
    for name, mode, total in (
        ("plain aio-pika, one by one", "plain", 10_000),
        ("Producer.submit, gathered", "submit", 60_000),
        ("Producer.submit_many", "submit_many", 60_000),
        ("SyncProducer.submit_many", "sync", 60_000),
    ):
        await harness.fresh()
        rows.append(await fill(harness, name, (*PRODUCER, mode), total, INGEST_TASKS))
    return rows


async def backlog(harness: BenchHarness) -> list[Row]:
    """CPU per message with growing backlogs, numbers of queues and ledgers; 40,000 messages per row."""
    rows = [await _small_backlog(harness, size) for size in (1_000, 10_000)]
    rows += [await consume(harness, f"backlog {size:,}", WORK, size, until=40_000) for size in (100_000, 1_000_000)]
    rows += [await _own_queues(harness, producers) for producers in (1, 4, 16)]
    before = 0
    for keys in (0, 1_000_000, 5_000_000):
        await harness.fill_ledger(before, keys)
        before = keys
        rows.append(await consume(harness, f"ledger +{keys:,} keys", WORK, 40_000))
    return rows


async def _own_queues(harness: BenchHarness, producers: int) -> Row:
    """The same backlog, in the queues of so many producers. The worker consumes two of each, and seven others."""
    url = await harness.fresh()
    names = [f"p{number}" for number in range(producers)]
    for name in names:
        await harness.add_producer(name)
    await preload(url, BACKLOG, customers=names)
    return await fill(harness, f"{producers} producers with queues of their own", WORK, BACKLOG * 9 // 10)


async def _small_backlog(harness: BenchHarness, size: int) -> Row:
    """Fill a small backlog repeatedly. RabbitMQ also works for the producer here, so the row shows only the process."""
    url = await harness.fresh()
    async with Depth(url, "consensus.tasks") as depth:
        with harness.running(*WORK) as process:
            await preload(url, size, tag="warm")
            await depth.until(size, process)
            meter = Meter(harness, process)
            for repetition in range(1, 40_000 // size + 1):
                await preload(url, size, tag=f"{repetition}.")
                await depth.until(size * (repetition + 1), process)
            row = meter.row(f"backlog {size:,}", 40_000 // size * size)
            row.rate = row.broker = row.store = 0.0
            return row


async def memory(harness: BenchHarness) -> list[Row]:
    """Peak RSS with batches, and RSS during a million messages."""
    return [
        await consume(harness, "1,000-task batches", WORK, 200, 1000),
        await consume(harness, "1,000-task batches of 8 MiB", WORK, 30, 1000, padding=8_000),
        await consume(harness, "1,000,000 singles", WORK, 1_000_000),
        await _every_queue(harness),
    ]


async def _every_queue(harness: BenchHarness) -> Row:
    """Every queue is full, also those of one producer: bundles, and batches of about 8 MiB."""
    url = await harness.fresh()
    await harness.add_producer("p")
    bundling = BundlingBroker(RabbitBroker(url, confirm_timeout=60), frozenset({"guest"}))
    publisher = await bundling.publisher()
    large = TASK | {"label_spec": TASK["label_spec"] | {"note": "x" * 7_500}}
    for queue in DEFAULT.admitted_queues:
        is_bulk = queue in BULK_QUEUES
        for _ in range(20):
            submissions = [batch_submission({"tasks": [large] * 1000}, "c", None)] if is_bulk else []
            submissions += [task_submission(TASK, "c", None) for _ in range(0 if is_bulk else 2_000)]
            messages = [to_message(Admitted(one, 1, 86_400), route=route_to(queue)) for one in submissions]
            assert set(await publisher.publish(messages)) == {"confirmed"}
    await bundling.close()
    await preload(url, 40_000, customers=["c", "p"])
    await preload(url, 40, 1000, padding=7_500, customers=["c", "p"])
    return await fill(harness, "every queue full", WORK, 200_000)


async def scale(harness: BenchHarness) -> list[Row]:
    """More processes, which share the broker and all cores."""
    singles = [
        await consume(harness, f"singles, --processes {n}", (*WORK, "--processes", str(n)), 40_000) for n in (1, 2, 4)
    ]
    batches = [
        await consume(harness, f"batches, --processes {n}", (*WORK, "--processes", str(n)), 150, 1000)
        for n in (1, 2, 4)
    ]
    shims = [
        await http.post(harness, f"serve --workers {n}", (*http.SERVE, "--workers", str(n)), "fresh") for n in (1, 2, 4)
    ]
    return singles + batches + shims


async def telemetry(harness: BenchHarness) -> list[Row]:
    """The cost of metrics and traces for single submissions; spans are created but not sent."""
    metrics = {"INGEST_METRICS_PORT": "0"}
    traces = {"INGEST_TRACING": "true", "OTEL_TRACES_EXPORTER": "none"}
    env = harness.env
    rows = []
    for name, additions in (("neither", {}), ("metrics", metrics), ("metrics and traces", metrics | traces)):
        harness.env = env | additions
        rows.append(await consume(harness, name, WORK, 40_000))
    harness.env = env
    return rows
