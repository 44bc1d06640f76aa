"""`/metrics`, `/healthz` and `/readyz` on a separate port, for Prometheus and the probes of an orchestrator."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ingest.domain.display import shown
from ingest.serving import EmbeddedServer
from ingest.shim.http.protocol import LimitedHttpProtocol
from ingest.telemetry.health import DEAD, STALE, Report


class MetricsProtocol(LimitedHttpProtocol):
    """The shim's limits of time and size. No probe is refused because others hold connections."""

    max_connections = 256


class Exposition:
    """Makes the ASGI application.

    Args:
        registry: the metrics that `/metrics` returns.
        reports: returns the newest report of each process that has one.
        processes: the number of processes that should report.
    """

    def __init__(self, registry: CollectorRegistry, reports: Callable[[], Sequence[Report]], processes: int) -> None:
        self._registry = registry
        self._reports = reports
        self._processes = processes

    def app(self) -> Starlette:
        routes = [
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
        ]
        return Starlette(routes=routes)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus' text format, or in OpenMetrics if the client asks for it."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})

    async def healthz(self, _: Request) -> Response:
        """200 unless a process hangs. An unavailable broker or store does not matter here."""
        hanging = [report for report in self._reports() if report.seconds_old() > DEAD]
        if not hanging:
            return _json(200, {"status": "ok"})
        return _json(503, {"error": "; ".join(_silent(report) for report in hanging)})

    async def readyz(self, _: Request) -> Response:
        """200 if every process can work, otherwise the problems."""
        reports = self._reports()
        problems = []
        if len(reports) < self._processes:
            problems.append(f"{self._processes - len(reports)} of {self._processes} processes have not started")
        for report in reports:
            name = f"process {report.process}: " if self._processes > 1 else ""
            if report.seconds_old() > STALE:
                problems.append(_silent(report))
            problems += [name + shown(problem) for problem in report.problems]
        if not problems:
            return _json(200, {"status": "ok"})
        return _json(503, {"error": "not ready: " + "; ".join(problems), "problems": problems})


def metrics_server(app: Starlette) -> EmbeddedServer:
    """Return a server for metrics and health."""
    return EmbeddedServer(
        uvicorn.Config(
            app,
            http=MetricsProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
    )


def _silent(report: Report) -> str:
    return f"process {report.process} (pid {report.pid}) has not reported for {report.seconds_old():.0f} s"


def _json(status: int, body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
