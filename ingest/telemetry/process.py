"""What is seen of one process: the wrappers, the look once a second, and the port where it is shown."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from ingest.admission import Admission
from ingest.domain.metrics import NO_METER, Meter
from ingest.domain.ports import Broker, Store
from ingest.serving import EmbeddedServer
from ingest.telemetry.broker import MeteredBroker
from ingest.telemetry.exposition import Exposition, metrics_server
from ingest.telemetry.health import Health, Report
from ingest.telemetry.http import App, MeteredApp
from ingest.telemetry.prometheus import Processes, PrometheusMeter, shared_registry
from ingest.telemetry.shared import ProcessReports
from ingest.telemetry.store import MeteredAdmission, MeteredStore


class MetricsEndpoint(msgspec.Struct, frozen=True):
    """Where a process shows itself: on `listener` where it is the only one, else through what its processes share."""

    process: str = "0"
    listener: socket.socket | None = None
    shared: ProcessReports | None = None


class Tracing(Protocol):
    """Wraps what has spans; `ingest.telemetry.otel` has the only one."""

    def app(self, app: App) -> App: ...

    def broker(self, broker: Broker, system: str) -> Broker:
        """`system`: OpenTelemetry's name of it."""
        ...

    async def close(self) -> None:
        """Send what is left."""
        ...


class Telemetry:
    """Wraps the ports of one process. What is off wraps nothing and costs nothing.

    Args:
        place: where it shows itself, if anywhere.
        watchdog: seconds after which deliveries that are held and not settled are a problem.
        tracing: where its spans go, if anywhere.
    """

    def __init__(self, place: MetricsEndpoint | None, watchdog: float, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self.meter: Meter = NO_METER
        self._place = place
        self._watchdog = watchdog
        self._store: MeteredStore | None = None
        self._broker: MeteredBroker | None = None
        self._report: Report | None = None
        self._app: MeteredApp | None = None
        self.breaker_open: Callable[[], bool] = lambda: False
        """Whether the worker takes no deliveries because of an outage."""
        if place is not None:
            self._prometheus = PrometheusMeter(place.process, place.shared.directory if place.shared else None)
            self.meter = self._prometheus

    def broker(self, broker: Broker, system: str) -> Broker:
        if self._tracing is not None:
            broker = self._tracing.broker(broker, system)
        if self._place is None:
            return broker
        self._broker = MeteredBroker(broker, self.meter)
        return self._broker

    def store(self, store: Store) -> Store:
        if self._place is None:
            return store
        self._store = MeteredStore(store, self.meter)
        return self._store

    def admission(self, store: Store, lease: float) -> Admission:
        return Admission(store, lease=lease) if self._place is None else MeteredAdmission(store, self.meter, lease)

    def app(self, app: App) -> App:
        if self._tracing is not None:
            app = self._tracing.app(app)
        if self._place is None:
            return app
        self._app = MeteredApp(app, self.meter)
        return self._app

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look, and show, while the body runs. Broker and store are to be wrapped before."""
        try:
            async with self._shown():
                yield
        finally:
            if self._tracing is not None:
                await self._tracing.close()

    @asynccontextmanager
    async def _shown(self) -> AsyncIterator[None]:
        if self._place is None or self._broker is None or self._store is None:
            yield
            return
        health = Health(self._broker, self._store.ready, self.meter, self._place.process, self._watchdog, self._tell)
        health.breaker_open = lambda: self.breaker_open()
        health.in_flight = lambda: self._app.in_flight if self._app else 0
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(health.run())
            server = self._server()
            if server is not None and self._place.listener is not None:
                group.create_task(server.serve(sockets=[self._place.listener]))
            yield
            looking.cancel()
            if server is not None:
                server.should_exit = True

    def _server(self) -> EmbeddedServer | None:
        if self._place is None or self._place.listener is None:
            return None
        registry = self._prometheus.registry
        own = {self._place.process: os.getpid()}
        Processes(registry, lambda: own)
        return metrics_server(Exposition(registry, self._reports, 1).app())

    def _reports(self) -> list[Report]:
        return [self._report] if self._report else []

    def _tell(self, report: Report) -> None:
        self._report = report
        if self._place is not None and self._place.shared is not None:
            self._place.shared.write(report)


async def serve_shared(shared: ProcessReports, listener: socket.socket, processes: int, stop: asyncio.Event) -> None:
    """Serve what `processes` processes share, until `stop`."""
    registry = shared_registry(shared.directory)
    Processes(registry, lambda: {report.process: report.pid for report in shared.reports()})
    server = metrics_server(Exposition(registry, shared.reports, processes).app())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await stop.wait()
    server.should_exit = True
    await serving
