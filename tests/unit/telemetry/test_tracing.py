"""The wrappers that make spans, on an exporter in memory."""

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

ONE, TWO = (f"00-{digit * 32}-b7ad6b7169203331-01" for digit in "12")
UNSAMPLED = f"00-{'3' * 32}-b7ad6b7169203331-00"


class Spans:
    """A tracer, and what it has finished."""

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


def numbered(token: int, traceparent: object = None) -> Delivery:
    headers: dict[str, Any] = {} if traceparent is None else {"traceparent": traceparent}
    return delivery(message_id=str(token), headers=headers, token=token)


class OneByOne(AckingConsumer):
    """Delivers what it is told; knows which of it is lost."""

    def __init__(self, *lists: list[Delivery]) -> None:
        super().__init__()
        self._lists = list(lists)
        self.lost: set[int] = set()

    async def receive(self) -> list[Delivery]:
        return self._lists.pop(0)

    def alive(self, delivery: Delivery) -> bool:
        return delivery.token not in self.lost

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Given back."""


async def test_messages_of_one_trace_share_a_span_and_lists_link(spans: Spans) -> None:
    """A span a trace below the one it came from, its context in the messages; one more that links to them."""
    inner = ScriptedPublisher()
    sent = [message(ONE, "a"), message(TWO, "b"), message(ONE, "c"), message(None, "d")]
    await TracedPublisher(inner, spans.tracer, "rabbitmq").publish(sent)
    members = spans.named("send asg.events")
    assert len(members) == 2
    (together,) = spans.named("send")
    assert together.parent is None
    assert {link.context.span_id for link in together.links} == {
        span.context.span_id for span in members if span.context
    }
    trace_ids = [each.headers["traceparent"].split("-")[1] if each.headers else None for each in inner.sent]
    assert trace_ids == ["1" * 32, "2" * 32, "1" * 32, None]
    assert inner.sent[0].headers == inner.sent[2].headers != {"traceparent": ONE}
    assert [each.message_id for each in inner.sent] == ["a", "b", "c", "d"]
    assert sent[0].headers == {"traceparent": ONE}, "the caller's own are left as they were: it may publish them again"


async def test_what_is_not_confirmed_is_an_error(spans: Spans) -> None:
    """With the outcome as its type."""
    inner = ScriptedPublisher(PublishOutcome.NACKED)
    await TracedPublisher(inner, spans.tracer, "rabbitmq").publish([message(ONE)])
    (span,) = spans.all()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "nacked"


async def test_what_is_not_sampled_is_passed_on_as_it_came(spans: Spans) -> None:
    """The client's decision holds, and so does ours; nothing is sent anywhere."""
    for tracer, traceparent in ((spans.tracer, UNSAMPLED), (Spans(sampled=False).tracer, None)):
        inner = ScriptedPublisher()
        await TracedPublisher(inner, tracer, "rabbitmq").publish([message(traceparent)])
        assert inner.sent == [message(traceparent)]
        consumer = TracedConsumer(OneByOne([numbered(1, traceparent)]), "q", tracer, "rabbitmq")
        (got,) = await consumer.receive()
        assert got.headers == numbered(1, traceparent).headers
        await consumer.ack([got])
    assert spans.all() == ()


@pytest.mark.parametrize("junk", ["junk", 5, b"\xff", {"a": 1}])
async def test_a_bad_context_begins_a_trace(spans: Spans, junk: object) -> None:
    """Whatever a direct producer has put into the header."""
    consumer = TracedConsumer(OneByOne([numbered(1, junk)]), "q", spans.tracer, "rabbitmq")
    (got,) = await consumer.receive()
    await consumer.ack([got])
    (span,) = spans.named("process q")
    assert span.parent is None
    assert got.headers["traceparent"] != junk


async def test_a_delivery_is_a_span_until_it_is_settled(spans: Spans) -> None:
    """Acknowledged: fine. Given back or lost with its connection: an error. None stays open."""
    inner = OneByOne([numbered(1, ONE), numbered(2), numbered(3)], [numbered(4)])
    consumer = TracedConsumer(inner, "q", spans.tracer, "rabbitmq")
    first, second, _ = await consumer.receive()
    assert spans.named("process q") == []
    await consumer.ack([first])
    (acked,) = spans.named("process q")
    assert acked.parent is not None
    assert acked.parent.trace_id == int("1" * 32, 16)
    (settled,) = spans.named("ack q")
    assert [link.context.span_id for link in settled.links] == [acked.context.span_id if acked.context else 0]
    await consumer.requeue([second])
    inner.lost = {3}
    (fourth,) = await consumer.receive()
    failures = [(span.attributes or {}).get("error.type") for span in spans.named("process q")]
    assert failures == [None, "requeued", "connection_lost"]
    await consumer.close()
    assert len(spans.named("process q")) == 4
    assert fourth.token == 4


async def test_a_request_hands_its_span_to_what_serves_it(spans: Spans) -> None:
    """In the headers, where the shim looks; a 5xx is an error; probes have no spans."""
    seen: list[dict[bytes, bytes]] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 503, "headers": []})

    async def nothing(_: Any = None) -> Any: ...

    traced = TracedApp(app, spans.tracer)
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/tasks",
        "headers": [],
        "client": None,
    }
    await traced(scope | {"headers": [(b"traceparent", ONE.encode()), (b"a", b"b")]}, nothing, nothing)
    await traced(scope | {"path": "/readyz"}, nothing, nothing)
    (span,) = spans.all()
    assert (span.name, span.status.status_code) == ("POST /v1/tasks", StatusCode.ERROR)
    assert span.context is not None
    assert seen[0] == {b"traceparent": f"00-{'1' * 32}-{span.context.span_id:016x}-01".encode(), b"a": b"b"}
    assert seen[1] == {}
    assert msgspec.json.encode(dict(span.attributes or {}))


def python(code: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_off_costs_nothing(tmp_path: Path) -> None:
    """Without INGEST_TRACING nothing of OpenTelemetry is even imported."""
    code = "import sys, ingest.cli; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert python(code, tmp_path).returncode == 0


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """One line, exit code 2."""
    code = "import sys; sys.modules['opentelemetry'] = None; from ingest.cli import main; main()"
    done = python(f"import sys; sys.argv = ['ingest', 'dev', '--port', '0']; {code}", tmp_path, INGEST_TRACING="true")
    assert done.returncode == 2
    assert "pip install 'asg-ingest[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_exporter_is_told(tmp_path: Path) -> None:
    """One line, exit code 2."""
    code = "import sys; sys.argv = ['ingest', 'dev', '--port', '0']; from ingest.cli import main; main()"
    done = python(code, tmp_path, INGEST_TRACING="true", OTEL_TRACES_EXPORTER="zipkin")
    assert done.returncode == 2
    assert "OTEL_TRACES_EXPORTER must be otlp, console or none, it is zipkin" in done.stderr
