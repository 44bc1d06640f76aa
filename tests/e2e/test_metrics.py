"""A real scrape of several processes: `serve --workers 2` and `work --processes 2`."""

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.messages import Message, PublishOutcome
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.e2e.test_supervisor import children
from tests.servers import AerospikeServer
from tests.servers.process import free_ports, wait_until


class Scraped:
    """`/metrics` at one moment."""

    def __init__(self, url: str) -> None:
        answer = httpx.get(f"{url}/metrics", timeout=10)
        assert answer.status_code == 200
        families = text_string_to_metric_families(answer.text)
        self.samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series with these labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def processes(self, name: str) -> set[str]:
        return {sample.labels["process"] for sample in self.samples if sample.name == name}


class Pair(msgspec.Struct):
    """`serve` and `work`, two processes each."""

    url: str
    serve_url: str
    work_url: str
    headers: dict[str, str]
    cust_id: str
    serve: Ingest
    work: Ingest

    def submit(self, count: int) -> None:
        with httpx.Client(headers=self.headers, timeout=20) as client:
            for _ in range(count):
                assert client.post(f"{self.url}/v1/tasks", json=TASK).status_code == 202


@pytest.fixture
def pair(rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path) -> Iterator[Pair]:
    port, serve_port, work_port = free_ports(3)
    env = {"INGEST_BROKER_URL": rabbitmq_url, "INGEST_STORE_URL": aerospike.url, "TMPDIR": str(tmp_path)}
    cust_id = f"c-{uuid.uuid4().hex[:8]}"
    assert run_ingest("customer", "add", cust_id, env=env, directory=tmp_path).returncode == 0
    made = run_ingest("key", "create", cust_id, "--json", env=env, directory=tmp_path)
    headers = {"Authorization": f"Bearer {msgspec.json.decode(made.stdout)['api_key']}"}
    serve_env = env | {"INGEST_METRICS_PORT": str(serve_port)}
    work_env = env | {"INGEST_METRICS_PORT": str(work_port)}
    with (
        Ingest("serve", "--port", str(port), "--workers", "2", directory=tmp_path, env=serve_env) as serve,
        Ingest("work", "--processes", "2", directory=tmp_path, env=work_env) as work,
    ):
        at = "http://127.0.0.1"
        pair = Pair(f"{at}:{port}", f"{at}:{serve_port}", f"{at}:{work_port}", headers, cust_id, serve, work)
        for url in (pair.url, pair.serve_url, pair.work_url):
            wait_until(lambda url=url: _answers(url), url, 30)  # type: ignore[misc]
            wait_ready(url)
        yield pair
        assert [serve.stop(30), work.stop(30)] == [0, 0], serve.text()[-2000:] + work.text()[-2000:]
        assert not list(tmp_path.glob("ingest-*/")), "the private directories are gone"


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_counts_add_up_across_processes_and_deaths(pair: Pair) -> None:
    """What two shims and two workers count is one sum, and a killed process takes nothing of it away."""
    pair.submit(40)
    with httpx.Client(headers=pair.headers) as client:
        again = [client.post(f"{pair.url}/v1/tasks", json=TASK | {"idempotency_key": "k"}) for _ in range(3)]
        other = TASK | {"idempotency_key": "k", "consensus_threshold": 5}
        assert client.post(f"{pair.url}/v1/tasks", json=other).headers["Idempotency-Payload-Mismatch"] == "true"
        assert client.post(f"{pair.url}/v1/tasks", json={}).status_code == 400
        assert client.get(f"{pair.url}/v1/tasks/{again[0].json()['task_id']}").status_code == 200
    _accepted(pair, 41)
    shim = Scraped(pair.serve_url)
    submissions = "ingest_submissions_total"
    assert shim.total(submissions, door="http", kind="task", outcome="accepted", reason="") == 41
    assert shim.total(submissions, outcome="replay") == 3
    assert shim.total(submissions, outcome="rejected", reason="invalid") == 1
    assert shim.total("ingest_payload_mismatches_total") == 1
    assert shim.total("ingest_http_requests_total", route="/v1/tasks", status="202") == 41
    assert shim.total("ingest_http_requests_total", route="/v1/tasks/{id}", status="200", method="GET") == 1
    assert shim.total("ingest_http_request_duration_seconds_count", route="/v1/tasks") == 45
    assert shim.total("ingest_published_messages_total", exchange="asg.submissions", outcome="confirmed") == 41
    work = Scraped(pair.work_url)
    assert work.total("ingest_acceptance_age_seconds_count", door="http", kind="task") == 41
    assert work.total("ingest_settled_deliveries_total", how="ack") == 41
    assert work.total("ingest_cohort_items_sum", step="settle") == 41
    assert work.processes("ingest_ready") == work.processes("process_cpu_seconds_total") == {"0", "1"}
    assert work.total("ingest_broker_connected", connection="consume ingest.tasks") == 2
    assert work.total("ingest_build_info") == 1

    for running in (pair.serve, pair.work):
        exporter = max(children(running.process.pid))
        os.kill(min(children(running.process.pid) - {exporter}), signal.SIGKILL)
    wait_until(lambda: _unready(pair.work_url), "unready", 10)
    for url in (pair.work_url, pair.serve_url, pair.url):
        wait_ready(url)
    pair.submit(20)
    _accepted(pair, 61)
    assert Scraped(pair.serve_url).total(submissions, door="http", outcome="accepted") == 61
    after = Scraped(pair.work_url)
    assert after.total("ingest_acceptance_age_seconds_count") == 61
    assert after.processes("ingest_ready") == {"0", "1"}


async def test_an_outage_is_told_and_kills_nothing(pair: Pair, aerospike: AerospikeServer, rabbitmq_url: str) -> None:
    """Aerospike stalls: both are unready and say why, both are alive, the brake shows; and all is well after it."""
    if not aerospike.controllable:
        pytest.skip("the Aerospike server given cannot be paused")
    broker = RabbitBroker(rabbitmq_url)
    publisher = await broker.publisher()
    direct = Message(
        exchange=topology.SUBMISSIONS,
        routing_key=f"task.submitted.{pair.cust_id}",
        body=msgspec.json.encode(TASK),
        message_id="m",
    )
    aerospike.pause()
    try:
        assert await publisher.publish([direct]) == [PublishOutcome.CONFIRMED]
        await broker.close()
        for url in (pair.serve_url, pair.work_url):
            await asyncio.to_thread(wait_until, partial(_says, url, "store: "), "unready", 20)
            assert httpx.get(f"{url}/healthz", timeout=5).status_code == 200
        await asyncio.to_thread(wait_until, partial(_says, pair.work_url, "breaker: "), "breaker", 20)
        during = Scraped(pair.work_url)
        assert during.total("ingest_brake_engaged") == 1
        assert during.total("ingest_ready") == 0
        assert during.total("ingest_deliveries_in_flight") == 1
        assert during.total("ingest_store_errors_total") > 0
    finally:
        aerospike.resume()
    for url in (pair.work_url, pair.serve_url):
        await asyncio.to_thread(wait_ready, url)
    await asyncio.to_thread(
        wait_until,
        lambda: Scraped(pair.work_url).total("ingest_accepted_tasks_total", door="amqp") == 1,
        "accepted",
        20,
    )
    after = Scraped(pair.work_url)
    assert after.total("ingest_submissions_total", door="amqp", kind="task", outcome="accepted") == 1
    assert after.total("ingest_waiting_submissions_total", cause="unavailable") >= 1


def test_every_log_line_tells_its_process(pair: Pair) -> None:
    """Lines of two processes never mix, and each says whose it is."""
    pair.submit(5)
    for running, role in ((pair.serve, "serve"), (pair.work, "work")):
        lines = [msgspec.json.decode(line) for line in running.text().splitlines()]
        assert {(line["role"], line["process"]) for line in lines if "role" in line} == {(role, "0"), (role, "1")}


def _says(url: str, what: str) -> bool:
    answer = httpx.get(f"{url}/readyz", timeout=10)
    return answer.status_code == 503 and what in answer.json()["error"]


def _unready(url: str) -> bool:
    answer = httpx.get(f"{url}/readyz", timeout=10)
    assert answer.status_code == 200 or "1 of 2 processes have not started" in answer.json()["error"]
    return answer.status_code == 503


def _accepted(pair: Pair, count: int) -> None:
    wait_until(lambda: Scraped(pair.work_url).total("ingest_accepted_tasks_total") >= count, f"{count} accepted", 30)
    assert Scraped(pair.work_url).total("ingest_accepted_tasks_total", door="http") == count
