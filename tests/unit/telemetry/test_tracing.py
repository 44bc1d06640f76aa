"""The decorators that create spans, with an exporter that keeps them in memory."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import StatusCode
from starlette.types import Scope

from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.telemetry.tracing import TracedApp, TracedConsumer, TracedPublisher
from tests.support.deliveries import delivery
from tests.support.fakes import AckingConsumer, ScriptedPublisher

TRACE_1, TRACE_2 = (f"00-{digit * 32}-b7ad6b7169203331-01" for digit in "12")
UNSAMPLED = f"00-{'3' * 32}-b7ad6b7169203331-00"


class Spans:
    """A tracer and the spans that it has finished."""

    def __init__(self, *, sampled: bool = True) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider() if sampled else TracerProvider(sampler=ParentBased(ALWAYS_OFF))
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")

    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]


@pytest.fixture
def spans() -> Spans:
    return Spans()


def message(traceparent: str | None, message_id: str = "m") -> Message:
    headers = {"traceparent": traceparent} if traceparent else {}
    return Message(exchange="asg.events", routing_key="k", body=b"{}", message_id=message_id, headers=headers)


def numbered_delivery(token: int, traceparent: object = None) -> Delivery:
    headers: dict[str, Any] = {} if traceparent is None else {"traceparent": traceparent}
    return delivery(message_id=str(token), headers=headers, token=token)


class ScriptedConsumer(AckingConsumer):
    """Delivers the given lists, one per call. The deliveries whose tokens are in `lost` are not alive."""

    def __init__(self, *lists: list[Delivery]) -> None:
        super().__init__()
        self._lists = list(lists)
        self.lost: set[int] = set()

    async def receive(self) -> list[Delivery]:
        return self._lists.pop(0)

    def alive(self, delivery: Delivery) -> bool:
        return delivery.token not in self.lost

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Accept the call."""


async def test_publish_creates_one_span_per_trace_and_one_that_links_to_them(spans: Spans) -> None:
    """The messages carry the context of the new span of their trace."""
    inner = ScriptedPublisher()
    messages = [message(TRACE_1, "a"), message(TRACE_2, "b"), message(TRACE_1, "c"), message(None, "d")]
    await TracedPublisher(inner, spans.tracer, "rabbitmq").publish(messages)
    spans_of_traces = spans.named("send asg.events")
    assert len(spans_of_traces) == 2
    (span_of_call,) = spans.named("send")
    assert span_of_call.parent is None
    assert {link.context.span_id for link in span_of_call.links} == {
        span.context.span_id for span in spans_of_traces if span.context
    }
    trace_ids = [sent.headers["traceparent"].split("-")[1] if sent.headers else None for sent in inner.sent]
    assert trace_ids == ["1" * 32, "2" * 32, "1" * 32, None]
    assert inner.sent[0].headers == inner.sent[2].headers != {"traceparent": TRACE_1}
    assert [sent.message_id for sent in inner.sent] == ["a", "b", "c", "d"]
    assert messages[0].headers == {"traceparent": TRACE_1}, "the caller may publish its message again"


async def test_span_of_an_unconfirmed_publish_has_the_outcome_as_its_error(spans: Spans) -> None:
    inner = ScriptedPublisher(PublishOutcome.NACKED)
    await TracedPublisher(inner, spans.tracer, "rabbitmq").publish([message(TRACE_1)])
    (span,) = spans.all()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "nacked"


async def test_unsampled_messages_and_deliveries_stay_unchanged_and_have_no_spans(spans: Spans) -> None:
    """Either the client or the service decided not to sample."""
    for tracer, traceparent in ((spans.tracer, UNSAMPLED), (Spans(sampled=False).tracer, None)):
        inner = ScriptedPublisher()
        await TracedPublisher(inner, tracer, "rabbitmq").publish([message(traceparent)])
        assert inner.sent == [message(traceparent)]
        consumer = TracedConsumer(ScriptedConsumer([numbered_delivery(1, traceparent)]), "q", tracer, "rabbitmq")
        (received,) = await consumer.receive()
        assert received.headers == numbered_delivery(1, traceparent).headers
        await consumer.ack([received])
    assert spans.all() == ()


@pytest.mark.parametrize("traceparent", ["junk", 5, b"\xff", {"a": 1}])
async def test_delivery_with_an_invalid_traceparent_starts_a_new_trace(spans: Spans, traceparent: object) -> None:
    consumer = TracedConsumer(ScriptedConsumer([numbered_delivery(1, traceparent)]), "q", spans.tracer, "rabbitmq")
    (received,) = await consumer.receive()
    await consumer.ack([received])
    (span,) = spans.named("process q")
    assert span.parent is None
    assert received.headers["traceparent"] != traceparent


async def test_span_of_a_delivery_ends_when_it_is_acked_or_requeued_or_lost_or_the_consumer_closes(
    spans: Spans,
) -> None:
    """It has an error if the delivery was requeued, or lost with its connection."""
    inner = ScriptedConsumer(
        [numbered_delivery(1, TRACE_1), numbered_delivery(2), numbered_delivery(3)], [numbered_delivery(4)]
    )
    consumer = TracedConsumer(inner, "q", spans.tracer, "rabbitmq")
    first, second, _ = await consumer.receive()
    assert spans.named("process q") == []
    await consumer.ack([first])
    (acked,) = spans.named("process q")
    assert acked.parent is not None
    assert acked.parent.trace_id == int("1" * 32, 16)
    (ack,) = spans.named("ack q")
    assert [link.context.span_id for link in ack.links] == [acked.context.span_id if acked.context else 0]
    await consumer.requeue([second])
    inner.lost = {3}
    (fourth,) = await consumer.receive()
    errors = [(span.attributes or {}).get("error.type") for span in spans.named("process q")]
    assert errors == [None, "requeued", "connection_lost"]
    await consumer.close()
    assert len(spans.named("process q")) == 4
    assert fourth.token == 4


async def test_request_carries_the_context_of_its_span_in_its_headers(spans: Spans) -> None:
    """A 5xx answer is an error of the span. Probes have no spans."""
    received_headers: list[dict[bytes, bytes]] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        received_headers.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 503, "headers": []})

    async def channel(_: Any = None) -> Any: ...

    traced = TracedApp(app, spans.tracer)
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/tasks",
        "headers": [],
        "client": None,
    }
    await traced(scope | {"headers": [(b"traceparent", TRACE_1.encode()), (b"a", b"b")]}, channel, channel)
    await traced(scope | {"path": "/readyz"}, channel, channel)
    (span,) = spans.all()
    assert (span.name, span.status.status_code) == ("POST /v1/tasks", StatusCode.ERROR)
    assert span.context is not None
    assert received_headers[0] == {b"traceparent": f"00-{'1' * 32}-{span.context.span_id:016x}-01".encode(), b"a": b"b"}
    assert received_headers[1] == {}
    assert msgspec.json.encode(dict(span.attributes or {})), "all values of the attributes are plain"


def run_python(code: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, "INGEST_CONSOLE_PORT": "0", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_opentelemetry_is_not_imported_without_ingest_tracing(tmp_path: Path) -> None:
    code = "import sys, ingest.cli; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert run_python(code, tmp_path).returncode == 0


def test_tracing_without_opentelemetry_exits_with_code_2_and_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['ingest', 'dev', '--port', '0']; sys.modules['opentelemetry'] = None; "
        "from ingest.cli import main; main()"
    )
    process = run_python(code, tmp_path, INGEST_TRACING="true")
    assert process.returncode == 2
    assert "pip install 'asg-ingest[otel]'" in process.stderr
    assert "Traceback" not in process.stderr


def test_unknown_exporter_exits_with_code_2_and_names_the_known_ones(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['ingest', 'dev', '--port', '0']; from ingest.cli import main; main()"
    process = run_python(code, tmp_path, INGEST_TRACING="true", OTEL_TRACES_EXPORTER="zipkin")
    assert process.returncode == 2
    assert "OTEL_TRACES_EXPORTER must be otlp, console or none, it is zipkin" in process.stderr
