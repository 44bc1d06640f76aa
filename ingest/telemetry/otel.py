"""Sets up OpenTelemetry from its `OTEL_*` variables. Imported only if tracing is on."""

import asyncio
import os
import platform
from typing import Any, Final

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from starlette.types import ASGIApp

from ingest import __version__
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import Broker
from ingest.telemetry.tracing import TracedApp, TracedBroker

_SHUTDOWN: Final = 10.0
"""Seconds for exporting the remaining spans."""

_log = structlog.get_logger(__name__)


class OpenTelemetry:
    """Traces of one process.

    Args:
        provider: exports the spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("ingest", __version__)

    def app(self, app: ASGIApp) -> ASGIApp:
        return TracedApp(app, self._tracer)

    def broker(self, broker: Broker, system: str) -> Broker:
        return TracedBroker(broker, self._tracer, system)

    async def close(self) -> None:
        """Export the remaining spans, within a time limit."""
        try:
            await asyncio.wait_for(asyncio.to_thread(self._provider.shutdown), _SHUTDOWN)
        except TimeoutError:
            _log.warning("span_export_timed_out", seconds=_SHUTDOWN)


def open_telemetry(role: str) -> OpenTelemetry:
    """Make the tracing that `OTEL_*` describes; the default is OTLP over HTTP. Raises ConfigurationError."""
    attributes: dict[str, Any] = {
        "service.version": __version__,
        "service.instance.id": f"{platform.node()}:{os.getpid()}",
    }
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes["service.name"] = role.replace(" ", "-")
    provider = TracerProvider(resource=Resource.create(attributes))
    exporter = _exporter()
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return OpenTelemetry(provider)


def _exporter() -> SpanExporter | None:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    match os.environ.get("OTEL_TRACES_EXPORTER") or "otlp":
        case "otlp" if protocol in (None, "", "http/protobuf"):
            return OTLPSpanExporter()
        case "otlp":
            raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, it is {protocol}")
        case "console":
            return ConsoleSpanExporter()
        case "none":
            return None
        case other:
            raise ConfigurationError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, it is {other}")
