"""The telemetry of one process: decorators, health checks, and the port that serves metrics and health."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec
from starlette.types import ASGIApp

from ingest.admission import Admission
from ingest.domain.metrics import NO_METER, Meter
from ingest.domain.ports import Broker, Store
from ingest.serving import EmbeddedServer
from ingest.telemetry.broker import MeteredBroker
from ingest.telemetry.exposition import Exposition, metrics_server
from ingest.telemetry.health import Health, Report
from ingest.telemetry.http import MeteredApp
from ingest.telemetry.prometheus import Processes, PrometheusMeter, shared_registry
from ingest.telemetry.reports import ProcessReports
from ingest.telemetry.store import MeteredAdmission, MeteredStore


class MetricsEndpoint(msgspec.Struct, frozen=True):
    """Where the metrics and health of a process are served.

    A single process serves them itself, on `listener`. One of several writes its reports to `shared`, and a further
    process serves all of them.
    """

    process: str = "0"
    listener: socket.socket | None = None
    shared: ProcessReports | None = None


class Tracing(Protocol):
    """Decorates what has spans. `ingest.telemetry.otel` implements it."""

    def app(self, app: ASGIApp) -> ASGIApp: ...

    def broker(self, broker: Broker, system: str) -> Broker:
        """Trace a broker; `system` is its name in OpenTelemetry."""
        ...

    async def close(self) -> None:
        """Export the remaining spans."""
        ...


class Telemetry:
    """Decorates the ports of one process, and checks its health. Metrics and traces that are off cost nothing.

    Args:
        endpoint: where metrics and health are served; None turns them off.
        watchdog: seconds after which it is a problem that deliveries are held and none is finished.
        tracing: exports the spans; None turns tracing off.
    """

    def __init__(self, endpoint: MetricsEndpoint | None, watchdog: float, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self.meter: Meter = NO_METER
        self._endpoint = endpoint
        self._watchdog = watchdog
        self._store: Store | None = None
        self._broker: MeteredBroker | None = None
        self._report: Report | None = None
        self._app: MeteredApp | None = None
        self.breaker_open: Callable[[], bool] = lambda: False
        """Whether the worker's circuit breaker is open."""
        self.worker_problems: Callable[[], list[str]] = list
        """What an operator must correct so that the worker can continue."""
        if endpoint is not None:
            self._prometheus = PrometheusMeter(endpoint.process, endpoint.shared.directory if endpoint.shared else None)
            self.meter = self._prometheus

    def broker(self, broker: Broker, system: str) -> Broker:
        if self._tracing is not None:
            broker = self._tracing.broker(broker, system)
        self._broker = MeteredBroker(broker, self.meter)
        return self._broker

    def store(self, store: Store) -> Store:
        self._store = store if self._endpoint is None else MeteredStore(store, self.meter)
        return self._store

    def admission(self, store: Store, lease: float) -> Admission:
        return Admission(store, lease=lease) if self._endpoint is None else MeteredAdmission(store, self.meter, lease)

    def app(self, app: ASGIApp) -> ASGIApp:
        if self._tracing is not None:
            app = self._tracing.app(app)
        if self._endpoint is None:
            return app
        self._app = MeteredApp(app, self.meter)
        return self._app

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Check and log health, and serve metrics, while the body runs. Decorate broker and store before."""
        try:
            async with self._checking():
                yield
        finally:
            if self._tracing is not None:
                await self._tracing.close()

    @asynccontextmanager
    async def _checking(self) -> AsyncIterator[None]:
        if self._broker is None or self._store is None:
            raise RuntimeError("decorate broker and store before")
        process = self._endpoint.process if self._endpoint is not None else "0"
        health = Health(self._broker, self._store.ready, self.meter, process, self._watchdog, self._store_report)
        health.breaker_open = lambda: self.breaker_open()
        health.worker_problems = lambda: self.worker_problems()
        health.in_flight = lambda: self._app.in_flight if self._app else 0
        async with asyncio.TaskGroup() as group:
            checking = group.create_task(health.run())
            server = self._server()
            if server is not None and self._endpoint is not None and self._endpoint.listener is not None:
                group.create_task(server.serve(sockets=[self._endpoint.listener]))
            yield
            checking.cancel()
            if server is not None:
                server.should_exit = True

    def _server(self) -> EmbeddedServer | None:
        if self._endpoint is None or self._endpoint.listener is None:
            return None
        registry = self._prometheus.registry
        own = {self._endpoint.process: os.getpid()}
        Processes(registry, lambda: own)
        return metrics_server(Exposition(registry, self._reports, 1).app())

    def _reports(self) -> list[Report]:
        return [self._report] if self._report else []

    def _store_report(self, report: Report) -> None:
        self._report = report
        if self._endpoint is not None and self._endpoint.shared is not None:
            self._endpoint.shared.write(report)


async def serve_shared(shared: ProcessReports, listener: socket.socket, processes: int, stop: asyncio.Event) -> None:
    """Serve the metrics and health of `processes` processes until `stop` is set.

    Args:
        shared: the files of the processes.
        listener: an open listening socket.
        processes: the number of processes that should report.
        stop: ends it.
    """
    registry = shared_registry(shared.directory)
    Processes(registry, lambda: {report.process: report.pid for report in shared.reports()})
    server = metrics_server(Exposition(registry, shared.reports, processes).app())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await stop.wait()
    server.should_exit = True
    await serving
