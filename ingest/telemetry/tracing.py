"""Traces with OpenTelemetry, by its semantic conventions for HTTP and messaging (RabbitMQ).

The flow passes `traceparent` on by itself (`domain.trace`), so a decorator only has to put the context of each span
where the next one reads it. A submission is one trace:

    POST /v1/tasks > send asg.submissions > process ingest.http.0 > send asg.events

Lists have separate spans that link to their members: `receive`, `settle`, and `send` of several traces at once. A
trace that is not sampled is passed on unchanged.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from ingest.broker.decorators import BrokerDecorator, ConsumerDecorator, PublisherDecorator
from ingest.domain.header_lines import joined
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Broker, Consumer, Publisher
from ingest.domain.trace import TRACEPARENT, TRACESTATE
from ingest.telemetry.http import route_of

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NAMES: Final = (TRACEPARENT.encode(), TRACESTATE.encode())


class TracedApp:
    """Adds spans to the API requests of an ASGI application. Probes and documents have none."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        headers = joined(scope["headers"])
        route = route_of(scope["path"])
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            _extract({name.decode(): headers[name].decode("latin-1") for name in _NAMES if name in headers}),
            SpanKind.SERVER,
            {
                "http.request.method": scope["method"],
                "http.route": route,
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
                "client.address": (scope.get("client") or ("",))[0],
                "user_agent.original": headers.get(b"user-agent", b"").decode("latin-1"),
            },
        )
        if not span.is_recording():
            await self._app(scope, receive, send)
            return

        async def record_status(message: ASGIMessage) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    _fail(span, str(message["status"]))
            await send(message)

        trace_headers = [(name.encode(), value.encode()) for name, value in _inject(span).items()]
        other_headers = [header for header in scope["headers"] if header[0] not in _NAMES]
        scope = {**scope, "headers": [*other_headers, *trace_headers]}
        # Each request is a task with its own context, so what is bound here is only in its own log lines.
        ids = span.get_span_context()
        structlog.contextvars.bind_contextvars(
            trace_id=trace.format_trace_id(ids.trace_id), span_id=trace.format_span_id(ids.span_id)
        )
        with trace.use_span(span, end_on_exit=True):
            await self._app(scope, receive, record_status)


class TracedBroker(BrokerDecorator):
    """Traces a broker; `system` is its name in OpenTelemetry."""

    def __init__(self, broker: Broker, tracer: Tracer, system: str) -> None:
        super().__init__(broker)
        self._tracer = tracer
        self._system = system

    async def publisher(self, connections: int = 1) -> "TracedPublisher":
        return TracedPublisher(await self._broker.publisher(connections), self._tracer, self._system)

    async def consumer(self, queue: str, prefetch: int) -> "TracedConsumer":
        return TracedConsumer(await self._broker.consumer(queue, prefetch), queue, self._tracer, self._system)


class TracedPublisher(PublisherDecorator):
    """Adds a span for the messages of each trace, below the span that they came from."""

    def __init__(self, publisher: Publisher, tracer: Tracer, system: str) -> None:
        super().__init__(publisher)
        self._tracer = tracer
        self._system = system

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        traced = list(messages)
        spans: list[tuple[Span, list[int]]] = []
        for indexes in _by_trace(messages):
            span = self._span(messages[indexes[0]], len(indexes))
            if not span.is_recording():
                continue
            spans.append((span, indexes))
            headers = _inject(span)
            for index in indexes:
                traced[index] = msgspec.structs.replace(traced[index], headers=traced[index].headers | headers)
        list_span = self._list_span([span for span, _ in spans], len(messages)) if len(spans) > 1 else None
        outcomes = await self._publisher.publish(traced)
        for span, indexes in spans:
            if failures := {outcomes[index] for index in indexes} - {PublishOutcome.CONFIRMED}:
                _fail(span, min(failures))
            span.end()
        if list_span is not None:
            list_span.end()
        return outcomes

    def _span(self, message: Message, count: int) -> Span:
        identity = (
            {"messaging.message.id": message.message_id} if count == 1 else {"messaging.batch.message_count": count}
        )
        return self._tracer.start_span(
            f"send {message.exchange}",
            _extract(message.headers),
            SpanKind.PRODUCER,
            {
                **_operation(self._system, "send", message.exchange),
                "messaging.rabbitmq.destination.routing_key": message.routing_key,
                **identity,
            },
        )

    def _list_span(self, members: Sequence[Span], count: int) -> Span:
        return self._tracer.start_span(
            "send",
            Context(),
            SpanKind.CLIENT,
            {**_operation(self._system, "send"), "messaging.batch.message_count": count},
            [Link(span.get_span_context()) for span in members],
        )


class TracedConsumer(ConsumerDecorator):
    """Adds a span for each delivery, from its receipt until it is finished."""

    def __init__(self, consumer: Consumer, queue: str, tracer: Tracer, system: str) -> None:
        super().__init__(consumer)
        self._queue = queue
        self._tracer = tracer
        self._system = system
        self._open: dict[Any, tuple[Span, Delivery]] = {}

    async def receive(self) -> list[Delivery]:
        deliveries = await self._consumer.receive()
        self._drop_lost()
        traced = [self._begin(delivery) for delivery in deliveries]
        self._record_list("receive", traced)
        return traced

    def _begin(self, delivery: Delivery) -> Delivery:
        span = self._tracer.start_span(
            f"process {self._queue}",
            _extract(delivery.headers),
            SpanKind.CONSUMER,
            {
                **_operation(self._system, "process", self._queue),
                "messaging.message.id": delivery.message_id or "",
                "messaging.message.body.size": len(delivery.body),
                "messaging.rabbitmq.destination.routing_key": delivery.routing_key,
                "ingest.redelivered": delivery.redelivered,
            },
        )
        if not span.is_recording():
            return delivery
        traced = msgspec.structs.replace(delivery, headers=delivery.headers | _inject(span))
        self._open[delivery.token] = (span, traced)
        return traced

    def _drop_lost(self) -> None:
        """End the spans of deliveries whose connection was lost; the broker delivers them again, with new spans."""
        for token in [token for token, (_, delivery) in self._open.items() if not self._consumer.alive(delivery)]:
            span, _ = self._open.pop(token)
            _fail(span, "connection_lost")
            span.end()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._record_list("settle", deliveries, "ack")
        await self._consumer.ack(deliveries)
        self._end(deliveries)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        self._record_list("settle", deliveries, "requeue")
        await self._consumer.requeue(deliveries)
        self._end(deliveries, "requeued")

    def _end(self, deliveries: Sequence[Delivery], failure: str = "") -> None:
        for delivery in deliveries:
            opened = self._open.pop(delivery.token, None)
            if opened is not None:
                span, _ = opened
                if failure:
                    _fail(span, failure)
                span.end()

    def _record_list(self, type_: str, deliveries: Sequence[Delivery], name: str = "") -> None:
        """Add a span for something that happens to many deliveries at once."""
        spans = [self._open[delivery.token][0] for delivery in deliveries if delivery.token in self._open]
        if spans:
            name = name or type_
            attributes = _operation(self._system, type_, self._queue) | {"messaging.operation.name": name}
            links = [Link(span.get_span_context()) for span in spans]
            self._tracer.start_span(
                f"{name} {self._queue}",
                Context(),
                SpanKind.CLIENT,
                {**attributes, "messaging.batch.message_count": len(deliveries)},
                links,
            ).end()

    async def pause(self) -> None:
        await self._consumer.pause()
        self._drop_lost()

    async def close(self) -> None:
        await self._consumer.close()
        for span, _ in self._open.values():
            span.end()
        self._open.clear()


def _by_trace(messages: Sequence[Message]) -> list[list[int]]:
    """Positions of the messages that have a trace, grouped by trace and exchange."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, message in enumerate(messages):
        if message.headers and (traceparent := message.headers.get(TRACEPARENT)):
            groups.setdefault((traceparent, message.exchange), []).append(index)
    return list(groups.values())


def _operation(system: str, type_: str, destination: str = "") -> dict[str, Any]:
    named = {"messaging.destination.name": destination} if destination else {}
    return {"messaging.system": system, "messaging.operation.type": type_, "messaging.operation.name": type_, **named}


def _extract(headers: Mapping[str, Any]) -> Context:
    carrier = {name: value for name in (TRACEPARENT, TRACESTATE) if isinstance(value := headers.get(name), str)}
    return _PROPAGATOR.extract(carrier, Context())


def _inject(span: Span) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier


def _fail(span: Span, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))
