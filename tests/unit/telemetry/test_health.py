"""Readiness and the watchdog of one process, and the port where several show theirs."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain.errors import StoreUnavailable
from ingest.domain.messages import Message
from ingest.domain.metrics import METRICS
from ingest.domain.topology import INGEST_TASKS, SUBMISSIONS
from ingest.telemetry.broker import MeteredBroker
from ingest.telemetry.exposition import Exposition
from ingest.telemetry.health import DEAD, STALE, Health, Report
from ingest.telemetry.prometheus import PrometheusMeter, shared_registry
from ingest.telemetry.reports import ProcessReports
from tests.support.fakes import Clock
from tests.unit.telemetry.test_metrics import samples


class ShimHarness:
    """A process that is looked at, its clock moved by hand."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.clock = Clock(1000.0)
        self.meter = PrometheusMeter()
        self.broker = MeteredBroker(broker, self.meter)
        self.reports: list[Report] = []
        self.store_away = ""
        self.health = Health(self.broker, self.ready, self.meter, "0", 60, self.reports.append, self.clock)

    async def ready(self) -> None:
        if self.store_away:
            raise StoreUnavailable(self.store_away)

    async def problems(self) -> list[str]:
        await self.health.check()
        return self.reports[-1].problems

    def gauge(self, name: str) -> float:
        return next(value for (each, _), value in samples(self.meter.registry).items() if each == name)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ShimHarness]:
    broker = await EmbeddedBroker.open(tmp_path / "q.db")
    yield ShimHarness(broker)
    await broker.close()


MESSAGE = Message(exchange=SUBMISSIONS, routing_key="task.submitted.c", body=b"{}", message_id="m")


async def test_not_ready_before_there_is_a_publisher(harness: ShimHarness) -> None:
    """A process that is still connecting cannot take anything."""
    assert await harness.problems() == ["starting: no connection to the broker yet"]
    await harness.broker.publisher()
    assert await harness.problems() == []
    assert harness.gauge("ingest_ready") == 1


async def test_what_is_away_is_named(harness: ShimHarness) -> None:
    """Store, broker and brake, each in its own words; the gauge agrees."""
    publisher = await harness.broker.publisher()
    harness.store_away = "no answer from there"
    harness.health.breaker_open = lambda: True
    await publisher.close()
    problems = await harness.problems()
    assert [problem.partition(":")[0] for problem in problems] == ["store", "broker", "breaker"]
    assert "no answer from there" in problems[0]
    assert harness.gauge("ingest_ready") == 0


async def test_the_watchdog_barks_when_deliveries_are_held_and_none_is_settled(harness: ShimHarness) -> None:
    """Not while idle, however long; not while something is settled; each stall is told with its queue."""
    publisher = await harness.broker.publisher()
    consumer = await harness.broker.consumer(INGEST_TASKS, 10)
    harness.clock.now += 3600
    assert await harness.problems() == []
    await publisher.publish([MESSAGE] * 3)
    first, second, _ = await consumer.receive()
    assert await harness.problems() == []
    harness.clock.now += 59
    assert await harness.problems() == []
    await consumer.ack([first])
    harness.clock.now += 59
    assert await harness.problems() == [], "one was settled"
    harness.clock.now += 61
    assert await harness.problems() == ["watchdog: 2 deliveries of ingest.tasks held, none finished for 61 s"]
    assert harness.gauge("ingest_stalled") == 1
    assert harness.gauge("ingest_deliveries_in_flight") == 2
    await consumer.ack([second])
    assert await harness.problems() == []
    assert harness.gauge("ingest_stalled") == 0


async def test_looking_goes_on_after_a_failure(harness: ShimHarness) -> None:
    """What only looks does not stop what works, nor itself."""
    await harness.broker.publisher()
    told = asyncio.Event()

    def tell(_: Report) -> None:
        if not told.is_set():
            told.set()
            raise OSError("no space left on device")
        harness.reports.append(_)

    health = Health(harness.broker, harness.ready, harness.meter, "0", 60, tell)
    looking = asyncio.create_task(health.run())
    async with asyncio.timeout(5):
        while not harness.reports:
            await asyncio.sleep(0.05)
    looking.cancel()


async def answers(reports: list[Report], processes: int) -> tuple[httpx.Response, httpx.Response]:
    app = Exposition(CollectorRegistry(), lambda: reports, processes).app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        assert (await client.get("/nothing")).status_code == 404
        return await client.get("/healthz"), await client.get("/readyz")


def report(process: str, age: float = 0.0, *problems: str) -> Report:
    return Report(process, 7, time.monotonic() - age, list(problems))


async def test_readiness_is_that_of_all_processes() -> None:
    """Each process' problems are told with its name; one that is missing or silent is a problem too."""
    alive, ready = await answers([report("0"), report("1")], 2)
    assert (alive.status_code, ready.status_code, ready.json()) == (200, 200, {"status": "ok"})
    alive, ready = await answers([report("0"), report("1", 0, "store: amqp://u:secret@h away")], 2)
    assert (alive.status_code, ready.status_code) == (200, 503)
    assert ready.json()["problems"] == ["process 1: store: amqp://u:***@h away"]
    alive, ready = await answers([report("0")], 2)
    assert (alive.status_code, ready.json()["problems"]) == (200, ["1 of 2 processes have not started"])


async def test_a_process_that_hangs_is_unready_first_and_dead_later() -> None:
    """An orchestrator restarts it; an outage alone never gets that far."""
    alive, ready = await answers([report("0", STALE + 1)], 1)
    assert (alive.status_code, ready.status_code) == (200, 503)
    assert "process 0 (pid 7) has not reported for 11 s" in ready.json()["error"]
    alive, _ = await answers([report("0", DEAD + 1, "store: away")], 1)
    assert alive.status_code == 503


def test_what_processes_share_is_private_and_goes_with_them() -> None:
    """Reports are read as they were written; those of the dead are forgotten, and at the end all is removed."""
    shared = ProcessReports()
    assert shared.directory.stat().st_mode & 0o077 == 0
    for process in ("0", "1"):
        shared.write(report(process))
        meter = PrometheusMeter(process, shared.directory)
        meter.set(next(metric for metric in METRICS if metric.name == "ingest_ready"), 1)
    PrometheusMeter()
    assert [each.process for each in shared.reports()] == ["0", "1"]
    shared.forget("1")
    assert [each.process for each in shared.reports()] == ["0"]
    ready = [labels for name, labels in samples(shared_registry(shared.directory)) if name == "ingest_ready"]
    assert ready == [frozenset({("process", "0")})]
    shared.remove()
    assert not shared.directory.exists()
