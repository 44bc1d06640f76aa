"""What is read from the metrics of processes, over real connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Gauge

from ingest import __version__
from ingest.domain import metrics
from ingest.domain.overview import ProcessState
from ingest.operations.scrape import Scraper
from ingest.serving import listen
from ingest.telemetry.exposition import Exposition, metrics_server
from ingest.telemetry.health import Report
from ingest.telemetry.prometheus import Processes, PrometheusMeter


def registry_of(*processes: str, version: str = "") -> CollectorRegistry:
    """Return the metrics of processes that are ready; without a version if it is empty."""
    registry = CollectorRegistry()
    ready = Gauge(metrics.READY.name, metrics.READY.help, metrics.READY.labels, registry=registry)
    for process in processes:
        ready.labels(process).set(1)
    if version:
        build = Gauge(metrics.BUILD_INFO.name, "", metrics.BUILD_INFO.labels, registry=registry)
        build.labels(version, "3.14").set(1)
    return registry


def no_reports() -> list[Report]:
    return []


@asynccontextmanager
async def serving(registry: CollectorRegistry, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """Serve metrics; the port is yielded."""
    listener = listen(host, port)
    server = metrics_server(Exposition(registry, no_reports, 0).app())
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running


async def scrape(registry: CollectorRegistry) -> list[ProcessState]:
    async with serving(registry) as port:
        states, problems = await Scraper([f"http://127.0.0.1:{port}"]).scrape()
    assert problems == []
    return states


async def test_processes_have_the_version_of_their_port() -> None:
    states = await scrape(registry_of("0", "1", version="0.2.0"))
    assert [(state.process, state.version, state.ready) for state in states] == [
        ("0", "0.2.0", True),
        ("1", "0.2.0", True),
    ]


async def test_process_that_serves_no_version_has_none() -> None:
    assert [state.version for state in await scrape(registry_of("0"))] == [""]


async def test_version_is_the_one_that_a_process_of_this_version_serves() -> None:
    meter = PrometheusMeter()
    meter.set(metrics.READY, 1)
    Processes(meter.registry, lambda: {"0": 1})
    assert [state.version for state in await scrape(meter.registry)] == [__version__]
