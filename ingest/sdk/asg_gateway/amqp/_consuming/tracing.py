"""The trace of an event goes on in its handler, if OpenTelemetry is installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from asg_gateway.amqp._events import Event

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    HAS_OPENTELEMETRY = False
else:
    HAS_OPENTELEMETRY = True


@contextmanager
def consumer_span(event: Event, queue: str) -> Iterator[None]:
    """Run the body in a span of kind CONSUMER below the one that published the event; without one, start a trace."""
    if not HAS_OPENTELEMETRY:
        yield
        return
    headers = {"traceparent": event.traceparent or "", "tracestate": event.tracestate or ""}
    attributes = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": queue,
        "messaging.message.id": event.id,
    }
    parent = TraceContextTextMapPropagator().extract(headers)
    with trace.get_tracer("asg_gateway").start_as_current_span(
        f"process {queue}", parent, trace.SpanKind.CONSUMER, attributes
    ):
        yield
