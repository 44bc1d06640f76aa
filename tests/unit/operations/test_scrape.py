"""What is read from the metrics of processes, over real connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, Gauge

from ingest import __version__
from ingest.domain import metrics
from ingest.domain.overview import ProcessState
from ingest.operations.scrape import Scraper, several
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


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["127.0.0.1", "::1"], []),
        (["10.0.0.10", "10.0.0.9", "10.0.0.9", "fd00::1", "fd00::2"], ["10.0.0.9", "10.0.0.10"]),
        (["10.0.0.9", "fd00::2", "fd00::1"], ["fd00::1", "fd00::2"]),
        ([], []),
    ],
)
def test_only_several_addresses_of_one_family_are_several_hosts(addresses: list[str], expected: list[str]) -> None:
    assert several(addresses) == expected


async def test_each_pod_behind_a_name_is_a_process() -> None:
    """The name of a headless Service resolves to all of its pods. Here, the third does not answer."""

    async def resolve(host: str) -> list[str]:
        assert host == "ingest-worker"
        return ["127.0.0.3", "127.0.0.2", "127.0.0.1"]

    async with (
        serving(registry_of("0", version="0.1.0")) as port,
        serving(registry_of("0", "1", version="0.2.0"), "127.0.0.2", port),
    ):
        url = f"http://ingest-worker:{port}"
        states, problems = await Scraper([url], resolve).scrape()
    assert [(state.url, state.address, state.process, state.version) for state in states] == [
        (url, "127.0.0.1", "0", "0.1.0"),
        (url, "127.0.0.2", "0", "0.2.0"),
        (url, "127.0.0.2", "1", "0.2.0"),
    ]
    (problem,) = problems
    assert problem.startswith(f"{url} at 127.0.0.3 serves no metrics: ")


@pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError(), TimeoutError()])
async def test_name_that_is_unknown_is_a_problem(error: Exception) -> None:
    async def resolve(host: str) -> list[str]:
        raise error

    states, (problem,) = await Scraper(["http://no-such-name.invalid:1"], resolve).scrape()
    assert states == []
    assert problem.startswith("http://no-such-name.invalid:1 serves no metrics: ")


async def test_https_is_read_by_its_name_because_the_certificate_has_it() -> None:
    async def resolve(host: str) -> list[str]:
        raise AssertionError

    _, (problem,) = await Scraper(["https://127.0.0.1:1"], resolve).scrape()
    assert problem.startswith("https://127.0.0.1:1 serves no metrics: ")
