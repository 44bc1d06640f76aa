"""One submission is one trace, from the HTTP request to the event."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import msgspec
import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import Delivery, Message, PublishOutcome
from tests.e2e.collector import Collector, Span
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer
from tests.servers.process import free_ports, wait_until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
INCOMING = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def traced_by(collector: Collector) -> dict[str, str]:
    """As an operator would: the standard variables."""
    return {"INGEST_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}


async def consumed(broker: EmbeddedBroker | RabbitBroker, count: int) -> list[Delivery]:
    """What consensus gets."""
    consumer = await broker.consumer(topology.CONSENSUS_TASKS, 100)
    got: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(got) < count:
            got += await consumer.receive()
    await consumer.ack(got)
    await consumer.close()
    return got


def chain(spans: list[Span]) -> list[str]:
    """Names from the root on, each the parent of the next; asserts that there is no branch."""
    known = {span.span_id for span in spans}
    (at,) = [span for span in spans if span.parent not in known]
    names = [at.name]
    while below := [span for span in spans if span.parent == at.span_id]:
        (at,) = below
        names.append(at.name)
    return names


WHOLE = ["POST /v1/tasks", "send asg.submissions", "process ingest.tasks", "send asg.events"]


def submit(url: str, api_key: str, traceparent: str | None = None) -> None:
    headers = [("Authorization", f"Bearer {api_key}")]
    if traceparent is not None:
        headers += [("traceparent", traceparent), ("tracestate", "vendor=1"), ("tracestate", "other=2")]
    assert httpx.post(f"{url}/v1/tasks", json=TASK, headers=headers, timeout=20).status_code == 202


async def test_embedded_with_and_without_tracing(tmp_path: Path) -> None:
    """The client's own trace goes on to the event; without tracing its context is passed on as it came."""
    with Collector() as collector:
        for env, expected in (({}, INCOMING), (traced_by(collector), None)):
            (port,) = free_ports(1)
            url = f"http://127.0.0.1:{port}"
            with Ingest("dev", "--port", str(port), "--api-key", "key", directory=tmp_path, env=env) as dev:
                dev.wait_for("serving")
                wait_ready(url)
                submit(url, "key", INCOMING)
                await asyncio.sleep(1)
                assert dev.stop() == 0
                log = dev.text()
            broker = await EmbeddedBroker.open(tmp_path / ".ingest/queue.db")
            (delivery,) = await consumed(broker, 1)
            await broker.close()
            event = json.loads(delivery.body)
            assert event["tracestate"] == delivery.headers["tracestate"]
            assert event["tracestate"].replace(" ", "") == "vendor=1,other=2"
            assert event["traceparent"].split("-")[1] == delivery.headers["traceparent"].split("-")[1] == TRACE_ID
            if expected is not None:
                assert event["traceparent"] == delivery.headers["traceparent"] == expected
                assert collector.spans == []
        spans = collector.trace(TRACE_ID)
        assert chain(spans) == WHOLE
        by_name = {span.name: span for span in spans}
        assert by_name["POST /v1/tasks"].parent == "b7ad6b7169203331"
        # The event was made by the processing; its message was sent by the span below.
        assert event["traceparent"].split("-")[2] == by_name["process ingest.tasks"].span_id
        assert delivery.headers["traceparent"].split("-")[2] == by_name["send asg.events"].span_id
        assert {span.service for span in spans} == {"ingest-dev"}
        answered = next(line for line in log.splitlines() if "submission_answered" in line)
        assert {"trace_id": TRACE_ID, "role": "dev"}.items() <= json.loads(answered).items()
        assert json.loads(answered)["request_id"]


class Running(msgspec.Struct):
    """`serve` and `work` with traces."""

    url: str
    api_key: str
    cust_id: str
    broker: RabbitBroker
    collector: Collector


@pytest.fixture
async def running(rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path) -> AsyncIterator[Running]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        collector = stack.enter_context(Collector())
        env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_STORE_URL": aerospike.url} | traced_by(collector)
        assert run_ingest("customer", "add", cust_id, env=env, directory=tmp_path).returncode == 0
        made = run_ingest("key", "create", cust_id, "--json", env=env, directory=tmp_path)
        serve = stack.enter_context(Ingest("serve", "--port", str(port), directory=tmp_path, env=env))
        work = stack.enter_context(Ingest("work", directory=tmp_path, env=env))
        serve.wait_for("serving")
        work.wait_for('"worker_started"')
        await asyncio.to_thread(wait_ready, url)
        broker = RabbitBroker(rabbitmq_url)
        stack.push_async_callback(broker.close)
        yield Running(url, json.loads(made.stdout)["api_key"], cust_id, broker, collector)
        assert [serve.stop(), work.stop()] == [0, 0], serve.text()[-2000:] + work.text()[-2000:]


async def test_rabbitmq_from_http_and_from_a_direct_producer(running: Running) -> None:
    """Both doors; batches are one trace too, and lists link to their members."""
    await asyncio.to_thread(submit, running.url, running.api_key)
    (first,) = await consumed(running.broker, 1)
    http = json.loads(first.body)["traceparent"].split("-")[1]
    key = f"batch.submitted.{running.cust_id}"
    batch = Message(
        exchange=topology.SUBMISSIONS,
        routing_key=key,
        body=json.dumps({"tasks": [TASK] * 3}).encode(),
        message_id="m",
        headers={"traceparent": INCOMING},
    )
    junk = msgspec.structs.replace(batch, message_id="n", headers={"traceparent": "junk"})
    publisher = await running.broker.publisher()
    assert set(await publisher.publish([batch, junk])) == {PublishOutcome.CONFIRMED}
    traces = [json.loads(each.body)["traceparent"].split("-")[1] for each in await consumed(running.broker, 6)]
    assert traces.count(TRACE_ID) == 3
    assert len(set(traces)) == 2, "the one with junk has a trace of its own"

    wait_until(lambda: len(running.collector.trace(TRACE_ID)) >= 3, "spans", 10)
    wait_until(lambda: len(running.collector.trace(http)) >= 4, "spans", 10)
    assert chain(running.collector.trace(http)) == WHOLE
    assert {span.service for span in running.collector.trace(http)} == {"ingest-serve", "ingest-work"}
    spans = running.collector.trace(TRACE_ID)
    (process,) = [span for span in spans if span.name == "process ingest.batches"]
    assert process.attributes["messaging.system"] == "rabbitmq"
    assert process.attributes["messaging.message.id"] == "m"
    sent = [span for span in spans if span.name == "send asg.events"]
    assert [span.parent for span in sent] == [process.span_id] * 2
    assert {span.attributes.get("messaging.batch.message_count") for span in sent} == {3, None}
    wait_until(lambda: any(span.name == "ack ingest.batches" for span in running.collector.spans), "settle", 10)
    for name in ("receive ingest.batches", "ack ingest.batches"):
        lists = [span for span in running.collector.spans if span.name == name]
        assert process.span_id in {link for span in lists for link in span.links}
        assert all(span.trace_id != TRACE_ID for span in lists)
