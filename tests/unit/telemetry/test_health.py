"""Readiness and the watchdog of one process, and the endpoints that report on all processes."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain.errors import StoreUnavailable
from ingest.domain.messages import Message
from ingest.domain.metrics import METRICS
from ingest.domain.topology import INGEST_TASKS, SUBMISSIONS, own_queues
from ingest.telemetry.broker import MeteredBroker
from ingest.telemetry.exposition import Exposition
from ingest.telemetry.health import DEAD, STALE, Health, Report
from ingest.telemetry.prometheus import PrometheusMeter, shared_registry
from ingest.telemetry.reports import ProcessReports
from tests.support.eventually import eventually
from tests.support.fakes import Clock
from tests.unit.telemetry.test_metrics import samples


class HealthHarness:
    """The health of a process whose clock and store the test controls."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.clock = Clock(1000.0)
        self.meter = PrometheusMeter()
        self.broker = MeteredBroker(broker, self.meter)
        self.reports: list[Report] = []
        self.store_error = ""
        self.health = Health(self.broker, self.ready, self.meter, "0", 60, self.reports.append, self.clock)

    async def ready(self) -> None:
        if self.store_error:
            raise StoreUnavailable(self.store_error)

    async def problems(self) -> list[str]:
        """Check once; return the problems of the report."""
        await self.health.check()
        return self.reports[-1].problems

    def gauge(self, name: str) -> float:
        return next(value for (metric, _), value in samples(self.meter.registry).items() if metric == name)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[HealthHarness]:
    broker = await EmbeddedBroker.open(tmp_path / "q.db")
    yield HealthHarness(broker)
    await broker.close()


MESSAGE = Message(exchange=SUBMISSIONS, routing_key="task.submitted.c", body=b"{}", message_id="m")


async def test_process_without_a_publisher_is_not_ready(harness: HealthHarness) -> None:
    assert await harness.problems() == ["starting: no connection to the broker yet"]
    await harness.broker.publisher()
    assert await harness.problems() == []
    assert harness.gauge("ingest_ready") == 1


async def test_problems_name_the_store_the_broker_and_the_circuit_breaker(harness: HealthHarness) -> None:
    publisher = await harness.broker.publisher()
    harness.store_error = "no answer from 10.0.0.1"
    harness.health.breaker_open = lambda: True
    harness.health.worker_problems = lambda: ["untrusted: user x"]
    await publisher.close()
    problems = await harness.problems()
    assert [problem.partition(":")[0] for problem in problems] == ["store", "broker", "breaker", "untrusted"]
    assert "no answer from 10.0.0.1" in problems[0]
    assert harness.gauge("ingest_ready") == 0


async def test_watchdog_reports_a_queue_whose_deliveries_are_held_and_not_finished(harness: HealthHarness) -> None:
    """Neither an idle process nor one that finishes deliveries has a problem."""
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
    assert await harness.problems() == [], "a delivery was finished since"
    harness.clock.now += 61
    assert await harness.problems() == ["watchdog: 2 deliveries of ingest.tasks held, none finished for 61 s"]
    assert harness.gauge("ingest_stalled") == 1
    assert harness.gauge("ingest_deliveries_in_flight") == 2
    await consumer.ack([second])
    assert await harness.problems() == []
    assert harness.gauge("ingest_stalled") == 0


async def test_queues_of_single_producers_have_one_series_without_their_names(harness: HealthHarness) -> None:
    """It is 0, and no longer watched, once they are left."""
    await harness.broker.publisher()
    consumers = [await harness.broker.consumer(queue.name, 10) for queue in own_queues("acme")]
    for consumer in consumers:
        await harness.problems()
        await consumer.close()
    harness.clock.now += 3600
    assert await harness.problems() == []
    series = samples(harness.meter.registry)
    assert not [labels for _, labels in series if "acme" in str(labels)]
    in_flight = {labels: value for (metric, labels), value in series.items() if metric == "ingest_deliveries_in_flight"}
    assert [("ingest.direct.*" in str(labels), value) for labels, value in in_flight.items()] == [(True, 0)]


async def test_checks_continue_after_a_report_that_could_not_be_written(harness: HealthHarness) -> None:
    await harness.broker.publisher()
    errors = [OSError("no space left on device")]

    def write(report: Report) -> None:
        if errors:
            raise errors.pop()
        harness.reports.append(report)

    health = Health(harness.broker, harness.ready, harness.meter, "0", 60, write)
    checking = asyncio.create_task(health.run())
    await eventually(lambda: harness.reports)
    checking.cancel()
    assert errors == []


async def probe(reports: list[Report], processes: int) -> tuple[httpx.Response, httpx.Response]:
    """The answers of `/healthz` and `/readyz`."""
    app = Exposition(CollectorRegistry(), lambda: reports, processes).app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        assert (await client.get("/nothing")).status_code == 404
        return await client.get("/healthz"), await client.get("/readyz")


def report(process: str, age: float = 0.0, *problems: str) -> Report:
    return Report(process, 7, time.monotonic() - age, list(problems))


async def test_readyz_answers_200_only_if_all_processes_have_started_and_have_no_problems() -> None:
    """A problem is listed with the number of its process, without passwords."""
    healthz, readyz = await probe([report("0"), report("1")], 2)
    assert (healthz.status_code, readyz.status_code, readyz.json()) == (200, 200, {"status": "ok"})
    healthz, readyz = await probe([report("0"), report("1", 0, "store: amqp://u:secret@h unavailable")], 2)
    assert (healthz.status_code, readyz.status_code) == (200, 503)
    assert readyz.json()["problems"] == ["process 1: store: amqp://u:***@h unavailable"]
    healthz, readyz = await probe([report("0")], 2)
    assert (healthz.status_code, readyz.status_code) == (200, 503)
    assert readyz.json()["problems"] == ["1 of 2 processes have not started"]


async def test_process_that_hangs_fails_the_readiness_probe_first_and_the_liveness_probe_later() -> None:
    healthz, readyz = await probe([report("0", STALE + 1)], 1)
    assert (healthz.status_code, readyz.status_code) == (200, 503)
    assert "process 0 (pid 7) has not reported for 11 s" in readyz.json()["error"]
    healthz, _ = await probe([report("0", DEAD + 1, "store: unavailable")], 1)
    assert healthz.status_code == 503


def test_report_and_gauges_of_a_process_that_died_are_removed() -> None:
    """The directory of all processes is private. It is deleted at the end."""
    shared = ProcessReports()
    assert shared.directory.stat().st_mode & 0o077 == 0
    for process in ("0", "1"):
        shared.write(report(process))
        meter = PrometheusMeter(process, shared.directory)
        meter.set(next(metric for metric in METRICS if metric.name == "ingest_ready"), 1)
    PrometheusMeter()  # so that later tests use memory, not files
    assert [report.process for report in shared.reports()] == ["0", "1"]
    shared.forget("1")
    assert [report.process for report in shared.reports()] == ["0"]
    ready = [labels for name, labels in samples(shared_registry(shared.directory)) if name == "ingest_ready"]
    assert ready == [frozenset({("process", "0")})]
    shared.remove()
    assert not shared.directory.exists()


async def test_log_says_what_is_unavailable_at_every_check_and_ready_once(harness: HealthHarness) -> None:
    """The processor `OutageLines` passes one of these lines a minute."""
    with capture_logs() as logs:
        await harness.problems()
        publisher = await harness.broker.publisher()
        harness.store_error = "no answer from 10.0.0.1"
        await harness.problems()
        await harness.problems()
        harness.store_error = ""
        await harness.problems()
        await harness.problems()
        await publisher.close()
        await harness.problems()
    events = [line["event"] for line in logs]
    assert events == ["store_unavailable", "store_unavailable", "ready", "broker_not_ready"]
    assert logs[0]["error"] == "no answer from 10.0.0.1"
    assert logs[-1]["error"] == "the publisher is closed"


async def test_log_names_problems_that_are_no_outage_once(harness: HealthHarness) -> None:
    await harness.broker.publisher()
    harness.health.worker_problems = lambda: ["untrusted: user x"]
    with capture_logs() as logs:
        await harness.problems()
        await harness.problems()
        harness.health.worker_problems = list
        await harness.problems()
    assert [line["event"] for line in logs] == ["not_ready", "ready"]


async def test_check_that_fails_again_and_again_has_one_traceback(harness: HealthHarness) -> None:
    calls: list[Report] = []

    def write(report: Report) -> None:
        calls.append(report)
        raise OSError("no space left on device")

    await harness.broker.publisher()
    health = Health(harness.broker, harness.ready, harness.meter, "0", 60, write, pause=0.001)
    with capture_logs() as logs:
        checking = asyncio.create_task(health.run())
        await eventually(lambda: len(calls) > 3)
        checking.cancel()
    assert [line["event"] for line in logs if line["event"] != "ready"] == ["health_check_failed"]
