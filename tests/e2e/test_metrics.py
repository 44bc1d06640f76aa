"""Scrapes of real processes: `serve --workers 2` and `work --processes 2`."""

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


class Scrape:
    """The samples of `/metrics` at one moment."""

    def __init__(self, url: str) -> None:
        answer = httpx.get(f"{url}/metrics", timeout=10)
        assert answer.status_code == 200
        families = text_string_to_metric_families(answer.text)
        self.samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all series with these labels."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def processes(self, name: str) -> set[str]:
        """Return the values of the label `process`."""
        return {sample.labels["process"] for sample in self.samples if sample.name == name}


class Pair(msgspec.Struct):
    """`serve` and `work` with two processes each."""

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
    created = run_ingest("key", "create", cust_id, "--json", env=env, directory=tmp_path)
    headers = {"Authorization": f"Bearer {msgspec.json.decode(created.stdout)['api_key']}"}
    serve_env = env | {"INGEST_METRICS_PORT": str(serve_port)}
    work_env = env | {"INGEST_METRICS_PORT": str(work_port)}
    with (
        Ingest("serve", "--port", str(port), "--workers", "2", directory=tmp_path, env=serve_env) as serve,
        Ingest("work", "--processes", "2", directory=tmp_path, env=work_env) as work,
    ):
        url, serve_url, work_url = (f"http://127.0.0.1:{number}" for number in (port, serve_port, work_port))
        pair = Pair(url, serve_url, work_url, headers, cust_id, serve, work)
        for url in (pair.url, pair.serve_url, pair.work_url):
            wait_until(lambda url=url: _is_alive(url), url, 30)  # type: ignore[misc]
            wait_ready(url)
        yield pair
        assert [serve.stop(30), work.stop(30)] == [0, 0], serve.text()[-2000:] + work.text()[-2000:]
        assert not list(tmp_path.glob("ingest-*/")), "the private directories were not removed"


def _is_alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_counters_are_summed_over_processes_and_survive_a_killed_process(pair: Pair) -> None:
    pair.submit(40)
    with httpx.Client(headers=pair.headers) as client:
        answers = [client.post(f"{pair.url}/v1/tasks", json=TASK | {"idempotency_key": "k"}) for _ in range(3)]
        other = TASK | {"idempotency_key": "k", "consensus_threshold": 5}
        assert client.post(f"{pair.url}/v1/tasks", json=other).headers["Idempotency-Payload-Mismatch"] == "true"
        assert client.post(f"{pair.url}/v1/tasks", json={}).status_code == 400
        assert client.get(f"{pair.url}/v1/tasks/{answers[0].json()['task_id']}").status_code == 200
    _wait_for_accepted(pair, 41)
    shim = Scrape(pair.serve_url)
    submissions = "ingest_submissions_total"
    assert shim.total(submissions, door="http", kind="task", outcome="accepted", reason="") == 41
    assert shim.total(submissions, outcome="replay") == 3
    assert shim.total(submissions, outcome="rejected", reason="invalid") == 1
    assert shim.total("ingest_payload_mismatches_total") == 1
    assert shim.total("ingest_http_requests_total", route="/v1/tasks", status="202") == 41
    assert shim.total("ingest_http_requests_total", route="/v1/tasks/{id}", status="200", method="GET") == 1
    assert shim.total("ingest_http_request_duration_seconds_count", route="/v1/tasks") == 45
    assert shim.total("ingest_published_messages_total", exchange="asg.submissions", outcome="confirmed") == 41
    work = Scrape(pair.work_url)
    assert work.total("ingest_acceptance_age_seconds_count", door="http", kind="task") == 41
    assert work.total("ingest_settled_deliveries_total", how="ack") == 41
    assert work.total("ingest_cohort_items_sum", step="settle") == 41
    assert work.processes("ingest_ready") == work.processes("process_cpu_seconds_total") == {"0", "1"}
    assert work.total("ingest_broker_connected", connection="consume ingest.tasks") == 2
    assert work.total("ingest_build_info") == 1

    for running in (pair.serve, pair.work):
        exporter = max(children(running.process.pid))
        os.kill(min(children(running.process.pid) - {exporter}), signal.SIGKILL)
    wait_until(lambda: _lacks_a_process(pair.work_url), "unready", 10)
    for url in (pair.work_url, pair.serve_url, pair.url):
        wait_ready(url)
    pair.submit(20)
    _wait_for_accepted(pair, 61)
    assert Scrape(pair.serve_url).total(submissions, door="http", outcome="accepted") == 61
    after = Scrape(pair.work_url)
    assert after.total("ingest_acceptance_age_seconds_count") == 61
    assert after.processes("ingest_ready") == {"0", "1"}


async def test_store_outage_makes_processes_unready_but_not_dead_until_it_ends(
    pair: Pair, aerospike: AerospikeServer, rabbitmq_url: str
) -> None:
    """Readiness names the store, the metrics show the circuit breaker, and the direct submission is accepted later."""
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
            await asyncio.to_thread(wait_until, partial(_is_unready_because_of, url, "store: "), "unready", 20)
            assert httpx.get(f"{url}/healthz", timeout=5).status_code == 200
        await asyncio.to_thread(wait_until, partial(_is_unready_because_of, pair.work_url, "breaker: "), "breaker", 20)
        during = Scrape(pair.work_url)
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
        lambda: Scrape(pair.work_url).total("ingest_accepted_tasks_total", door="amqp") == 1,
        "accepted",
        20,
    )
    after = Scrape(pair.work_url)
    assert after.total("ingest_submissions_total", door="amqp", kind="task", outcome="accepted") == 1
    assert after.total("ingest_waiting_submissions_total", cause="unavailable") >= 1


def test_log_lines_are_whole_and_name_their_role_and_process(pair: Pair) -> None:
    pair.submit(5)
    for running, role in ((pair.serve, "serve"), (pair.work, "work")):
        lines = [msgspec.json.decode(line) for line in running.text().splitlines()]
        assert {(line["role"], line["process"]) for line in lines if "role" in line} == {(role, "0"), (role, "1")}


def _is_unready_because_of(url: str, reason: str) -> bool:
    answer = httpx.get(f"{url}/readyz", timeout=10)
    return answer.status_code == 503 and reason in answer.json()["error"]


def _lacks_a_process(url: str) -> bool:
    answer = httpx.get(f"{url}/readyz", timeout=10)
    assert answer.status_code == 200 or "1 of 2 processes have not started" in answer.json()["error"]
    return answer.status_code == 503


def _wait_for_accepted(pair: Pair, count: int) -> None:
    wait_until(lambda: Scrape(pair.work_url).total("ingest_accepted_tasks_total") >= count, f"{count} accepted", 30)
    assert Scrape(pair.work_url).total("ingest_accepted_tasks_total", door="http") == count
