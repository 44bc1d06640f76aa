"""A real Prometheus scrapes two shim processes, a worker and RabbitMQ with the configuration in deploy/."""

import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.deploy.files import DEPLOY, alerts, dashboard_queries, keda_queries
from tests.deploy.test_monitoring import OTHER_METRICS
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, PrometheusServer, RabbitServer, Unavailable
from tests.servers.process import free_ports, wait_until
from tests.support.summary import note_server

EMPTY_WITHOUT_FAILURES = {"Publishes not confirmed", "Failed calls", "Repeats and waits"}
"""Panels that have data only after a failure."""


@pytest.fixture(scope="module")
def prometheus(
    rabbitmq: RabbitServer, aerospike: AerospikeServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusServer]:
    """A Prometheus that has scraped every target while the service handled valid and invalid submissions."""
    if rabbitmq.metrics is None:
        pytest.skip("RabbitMQ is given by URL: the address of its Prometheus plugin is unknown")
    directory = tmp_path_factory.mktemp("scrape")
    port, shim, worker = free_ports(3)
    broker = rabbitmq.new_vhost()
    env = {
        "INGEST_BROKER_URL": broker,
        "INGEST_STORE_URL": aerospike.url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    try:
        server = PrometheusServer(
            DEPLOY / "prometheus/prometheus.yml",
            {
                "ingest-shim": [f"127.0.0.1:{shim}"],
                "ingest-worker": [f"127.0.0.1:{worker}"],
                "rabbitmq": [rabbitmq.metrics],
                "rabbitmq-queues": [rabbitmq.metrics],
            },
        )
    except Unavailable as error:
        note_server("Prometheus", f"SKIPPED: {error}")
        pytest.skip(f"Prometheus: {error}")
    note_server("Prometheus", server.origin)
    for command in (
        ("topology", "apply"),
        ("customer", "add", "scraped"),
        ("webhook", "add", "scraped", "https://e.com/h"),
    ):
        assert run_ingest(*command, env=env, directory=directory).returncode == 0
    key = run_ingest("key", "create", "scraped", "--json", env=env, directory=directory).stdout
    api_key = httpx.Response(200, content=key).json()["api_key"]
    serve = Ingest(
        "serve",
        "--workers",
        "2",
        "--port",
        str(port),
        directory=directory,
        env={**env, "INGEST_METRICS_PORT": str(shim)},
    )
    work = Ingest("work", directory=directory, env={**env, "INGEST_METRICS_PORT": str(worker)})
    with serve, work:
        wait_ready(f"http://127.0.0.1:{port}")
        submit(f"http://127.0.0.1:{port}", api_key)
        publish_invalid(rabbitmq, urlsplit(broker).path[1:])
        wait_for_series(server, "sum(ingest_accepted_tasks_total) > 20")
        wait_for_series(server, 'rabbitmq_detailed_queue_messages{queue="ingest.dead"} > 0')
        wait_for_series(server, 'rabbitmq_detailed_queue_messages_bytes{queue="ingest.dead"} > 0')
        time.sleep(3)  # a rate needs two scrapes of each series
        yield server
    server.stop()
    rabbitmq.drop_vhost(broker)


def wait_for_series(server: PrometheusServer, query: str) -> None:
    """Wait until a query returns a series. Raises TimeoutError after 30 s."""
    wait_until(lambda: bool(server.query(query)), f"the result of {query}", 30)


def submit(url: str, api_key: str) -> None:
    """Send new tasks, replays, mismatches, batches and invalid tasks for some seconds."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {api_key}"}) as client:
        for number in range(24):
            task = {**TASK, "idempotency_key": f"k{number}"}
            assert client.post("/v1/tasks", json=task).status_code == 202
            assert client.post("/v1/tasks", json=task).status_code == 200
            assert client.post("/v1/tasks", json={**task, "consensus_threshold": 5}).status_code == 200
            assert client.post("/v1/tasks", json={**task, "type": "poetry"}).status_code == 400
            assert client.post("/v1/tasks/batch", json={"tasks": [TASK, TASK]}).status_code == 202
            time.sleep(0.15)


def publish_invalid(rabbitmq: RabbitServer, vhost: str) -> None:
    """Publish a direct submission that the worker rejects to ingest.dead."""
    body = {
        "properties": {"message_id": "m", "content_type": "application/json"},
        "routing_key": "task.submitted.scraped",
        "payload": "{}",
        "payload_encoding": "string",
    }
    assert rabbitmq.api("POST", f"exchanges/{vhost}/asg.submissions/publish", body)["routed"]


def test_every_target_is_scraped_under_its_job(prometheus: PrometheusServer) -> None:
    health = {target["labels"]["job"]: target["health"] for target in prometheus.api("targets")["activeTargets"]}
    assert health == {"ingest-shim": "up", "ingest-worker": "up", "rabbitmq": "up", "rabbitmq-queues": "up"}


@pytest.mark.parametrize(("panel", "query"), dashboard_queries())
def test_every_panel_has_data(prometheus: PrometheusServer, panel: str, query: str) -> None:
    series = prometheus.query(query)
    assert series or panel in EMPTY_WITHOUT_FAILURES


def test_keda_query_returns_one_series_even_without_data(prometheus: PrometheusServer) -> None:
    """KEDA needs a scalar or exactly one series. If no task was accepted recently, its value is 0."""
    queries = keda_queries()
    assert queries
    for query in queries:
        (series,) = prometheus.query(query)
        assert float(series["value"][1]) >= 0
        without_data, replaced = re.subn("ingest_acceptance_age|rabbitmq_detailed", "no_such", query)
        assert replaced
        (series,) = prometheus.query(without_data)
        assert series["value"][1] == "0"


def test_alerts_are_evaluated_and_stay_silent_on_a_healthy_service(prometheus: PrometheusServer) -> None:
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {alert["alert"] for alert in alerts()}
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok" and rule.get("lastError")} == {}
    # The fixture publishes an invalid submission, and consensus.tasks and webhook.dispatch have no consumer.
    active = {rule["name"] for rule in rules if rule["state"] != "inactive"}
    assert active <= {"IngestDeadLetters", "IngestNoConsumer"}


def test_metrics_of_other_exporters_exist(prometheus: PrometheusServer) -> None:
    names = set(prometheus.api("label/__name__/values"))
    assert set(OTHER_METRICS) - names == set()


def test_labels_contain_neither_customers_nor_ids(prometheus: PrometheusServer) -> None:
    """Clients choose them, so the number of series would be unbounded."""
    series = prometheus.api("series", **{"match[]": '{__name__=~"ingest_.+"}'})
    values = {value for labels in series for value in labels.values()}
    assert values
    assert not [value for value in values if "scraped" in value or re.search("(tsk|bat)_", value)]
