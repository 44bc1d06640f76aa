"""All spans of one submission, from the HTTP request to the event, belong to one trace."""

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


def tracing_env(collector: Collector) -> dict[str, str]:
    """Return environment variables that turn on tracing and send the spans to the collector."""
    return {"INGEST_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}


async def consume_accepted(broker: EmbeddedBroker | RabbitBroker, count: int) -> list[Delivery]:
    """Receive and ack this many task.accepted events or more."""
    consumer = await broker.consumer(topology.CONSENSUS_TASKS, 100)
    deliveries: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(deliveries) < count:
            deliveries += await consumer.receive()
    await consumer.ack(deliveries)
    await consumer.close()
    return deliveries


def chain(spans: list[Span]) -> list[str]:
    """Return the names from the root to the leaf; fail if a span has two children."""
    ids = {span.span_id for span in spans}
    (current,) = [span for span in spans if span.parent not in ids]
    names = [current.name]
    while children := [span for span in spans if span.parent == current.span_id]:
        (current,) = children
        names.append(current.name)
    return names


FULL_CHAIN = ["POST /v1/tasks", "send asg.submissions", "process ingest.http.0", "send asg.events"]


def submit(url: str, api_key: str, traceparent: str | None = None) -> None:
    headers = [("Authorization", f"Bearer {api_key}")]
    if traceparent is not None:
        headers += [("traceparent", traceparent), ("tracestate", "vendor=1"), ("tracestate", "other=2")]
    assert httpx.post(f"{url}/v1/tasks", json=TASK, headers=headers, timeout=20).status_code == 202


async def test_dev_continues_the_trace_of_the_client_and_passes_it_on_without_tracing(tmp_path: Path) -> None:
    """Without tracing, the event has the client's traceparent unchanged, and the collector receives no spans."""
    with Collector() as collector:
        for env, expected in (({}, INCOMING), (tracing_env(collector), None)):
            (port,) = free_ports(1)
            url = f"http://127.0.0.1:{port}"
            debug = env | {"INGEST_LOG_LEVEL": "debug"}
            with Ingest("dev", "--port", str(port), "--api-key", "key", directory=tmp_path, env=debug) as dev:
                dev.wait_for("serving")
                wait_ready(url)
                submit(url, "key", INCOMING)
                dev.wait_for("task.accepted")
                assert dev.stop() == 0
                log = dev.text()
            broker = await EmbeddedBroker.open(tmp_path / ".ingest/queue.db")
            (delivery,) = await consume_accepted(broker, 1)
            await broker.close()
            event = json.loads(delivery.body)
            assert event["tracestate"] == delivery.headers["tracestate"]
            assert event["tracestate"].replace(" ", "") == "vendor=1,other=2"
            assert event["traceparent"].split("-")[1] == delivery.headers["traceparent"].split("-")[1] == TRACE_ID
            if expected is not None:
                assert event["traceparent"] == delivery.headers["traceparent"] == expected
                assert collector.spans == []
        spans = collector.trace(TRACE_ID)
        assert chain(spans) == FULL_CHAIN
        by_name = {span.name: span for span in spans}
        assert by_name["POST /v1/tasks"].parent == "b7ad6b7169203331"
        # The event refers to the span of the processing, and its message to the child span that sent it.
        assert event["traceparent"].split("-")[2] == by_name["process ingest.http.0"].span_id
        assert delivery.headers["traceparent"].split("-")[2] == by_name["send asg.events"].span_id
        assert {span.service for span in spans} == {"ingest-dev"}
        answered = next(line for line in log.splitlines() if "submission_answered" in line)
        assert {"trace_id": TRACE_ID, "role": "dev"}.items() <= json.loads(answered).items()
        assert json.loads(answered)["request_id"]


class Running(msgspec.Struct):
    """`serve` and `work` with tracing."""

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
        env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_STORE_URL": aerospike.url} | tracing_env(collector)
        assert run_ingest("customer", "add", cust_id, env=env, directory=tmp_path).returncode == 0
        created = run_ingest("key", "create", cust_id, "--json", env=env, directory=tmp_path)
        serve = stack.enter_context(Ingest("serve", "--port", str(port), directory=tmp_path, env=env))
        work = stack.enter_context(Ingest("work", directory=tmp_path, env=env))
        serve.wait_for("serving")
        work.wait_for('"worker_started"')
        await asyncio.to_thread(wait_ready, url)
        broker = RabbitBroker(rabbitmq_url)
        stack.push_async_callback(broker.close)
        yield Running(url, json.loads(created.stdout)["api_key"], cust_id, broker, collector)
        assert [serve.stop(), work.stop()] == [0, 0], serve.text()[-2000:] + work.text()[-2000:]


async def test_each_submission_over_http_or_amqp_is_one_trace(running: Running) -> None:
    """All items of a batch are in its trace. The spans of a receive and an ack link to the submissions."""
    await asyncio.to_thread(submit, running.url, running.api_key)
    (delivery,) = await consume_accepted(running.broker, 1)
    http_trace_id = json.loads(delivery.body)["traceparent"].split("-")[1]
    key = f"batch.submitted.{running.cust_id}"
    batch = Message(
        exchange=topology.SUBMISSIONS,
        routing_key=key,
        body=json.dumps({"tasks": [TASK] * 3}).encode(),
        message_id="m",
        headers={"traceparent": INCOMING},
    )
    invalid = msgspec.structs.replace(batch, message_id="n", headers={"traceparent": "junk"})
    publisher = await running.broker.publisher()
    assert set(await publisher.publish([batch, invalid])) == {PublishOutcome.CONFIRMED}
    deliveries = await consume_accepted(running.broker, 6)
    trace_ids = [json.loads(delivery.body)["traceparent"].split("-")[1] for delivery in deliveries]
    assert trace_ids.count(TRACE_ID) == 3
    assert len(set(trace_ids)) == 2, "a batch with an invalid traceparent must get its own trace"

    wait_until(lambda: len(running.collector.trace(TRACE_ID)) >= 3, "spans", 10)
    wait_until(lambda: len(running.collector.trace(http_trace_id)) >= 4, "spans", 10)
    assert chain(running.collector.trace(http_trace_id)) == FULL_CHAIN
    assert {span.service for span in running.collector.trace(http_trace_id)} == {"ingest-serve", "ingest-work"}
    spans = running.collector.trace(TRACE_ID)
    (process,) = [span for span in spans if span.name == "process ingest.batches"]
    assert process.attributes["messaging.system"] == "rabbitmq"
    assert process.attributes["messaging.message.id"] == "m"
    sent = [span for span in spans if span.name == "send asg.events"]
    assert [span.parent for span in sent] == [process.span_id] * 2
    assert {span.attributes.get("messaging.batch.message_count") for span in sent} == {3, None}
    wait_until(
        lambda: any(span.name == "ack ingest.batches" for span in running.collector.spans), "the span of the ack", 10
    )
    for name in ("receive ingest.batches", "ack ingest.batches"):
        list_spans = [span for span in running.collector.spans if span.name == name]
        assert process.span_id in {link for span in list_spans for link in span.links}
        assert all(span.trace_id != TRACE_ID for span in list_spans)
