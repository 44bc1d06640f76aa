"""A real Prometheus scrapes real shims, a worker and RabbitMQ as deploy/ says; dashboard and alerts are asked of it."""

import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import note_server
from tests.deploy.files import DEPLOY, alerts, dashboard_queries, keda_queries
from tests.deploy.test_monitoring import OTHERS
from tests.e2e.contract import TASK
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, PrometheusServer, RabbitServer, Unavailable
from tests.servers.process import free_ports, wait_until

ONLY_IN_TROUBLE = {"Publishes not confirmed", "Failed calls", "Repeats and waits"}
"""Panels that are empty while all is well."""


@pytest.fixture(scope="module")
def prometheus(
    rabbitmq: RabbitServer, aerospike: AerospikeServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusServer]:
    """It has scraped two HTTP processes, a worker and RabbitMQ under some traffic, good and bad."""
    if rabbitmq.metrics is None:
        pytest.skip("RabbitMQ is given by URL: its Prometheus plugin is not known")
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
        publish_badly(rabbitmq, urlsplit(broker).path[1:])
        wait_until(lambda: server.query("sum(ingest_accepted_tasks_total) > 20"), "tasks to be accepted", 30)
        wait_until(lambda: server.query('rabbitmq_detailed_queue_messages{queue="ingest.dead"} > 0'), "RabbitMQ", 30)
        time.sleep(3)  # a rate needs two scrapes after the last change
        yield server
    server.stop()
    rabbitmq.drop_vhost(broker)


def submit(url: str, api_key: str) -> None:
    """For some seconds: new tasks, replays, a mismatch, a batch, and what is refused."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {api_key}"}) as client:
        for number in range(24):
            task = {**TASK, "idempotency_key": f"k{number}"}
            assert client.post("/v1/tasks", json=task).status_code == 202
            assert client.post("/v1/tasks", json=task).status_code == 200
            assert client.post("/v1/tasks", json={**task, "consensus_threshold": 5}).status_code == 200
            assert client.post("/v1/tasks", json={**task, "type": "poetry"}).status_code == 400
            assert client.post("/v1/tasks/batch", json={"tasks": [TASK, TASK]}).status_code == 202
            time.sleep(0.15)


def publish_badly(rabbitmq: RabbitServer, vhost: str) -> None:
    """A direct submission that ends in ingest.dead."""
    body = {
        "properties": {"message_id": "m", "content_type": "application/json"},
        "routing_key": "task.submitted.scraped",
        "payload": "{}",
        "payload_encoding": "string",
    }
    assert rabbitmq.api("POST", f"exchanges/{vhost}/asg.submissions/publish", body)["routed"]


def test_every_target_is_scraped(prometheus: PrometheusServer) -> None:
    """Under the jobs that alerts and dashboard know."""
    health = {each["labels"]["job"]: each["health"] for each in prometheus.api("targets")["activeTargets"]}
    assert health == {"ingest-shim": "up", "ingest-worker": "up", "rabbitmq": "up", "rabbitmq-queues": "up"}


@pytest.mark.parametrize(("panel", "query"), dashboard_queries())
def test_every_panel_has_data(prometheus: PrometheusServer, panel: str, query: str) -> None:
    """Each query is taken, and answers with series."""
    series = prometheus.query(query)
    assert series or panel in ONLY_IN_TROUBLE


def test_kedas_query_is_one_number(prometheus: PrometheusServer) -> None:
    """KEDA takes a scalar or one series; it is 0 where nothing was accepted lately."""
    for query in keda_queries():
        (series,) = prometheus.query(query)
        assert float(series["value"][1]) >= 0
        (series,) = prometheus.query(query.replace("ingest_acceptance_age", "no_such_metric"))
        assert series["value"][1] == "0"


def test_alerts_are_evaluated_and_quiet(prometheus: PrometheusServer) -> None:
    """Every rule is in good health, and on a service that works only the bad submission is pending or firing."""
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {alert["alert"] for alert in alerts()}
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok" and rule.get("lastError")} == {}
    # Nobody consumes downstream in this test, hence no consumer of consensus.tasks and webhook.dispatch.
    awake = {rule["name"] for rule in rules if rule["state"] != "inactive"}
    assert awake <= {"IngestDeadLetters", "IngestNoConsumer"}


def test_what_is_used_of_rabbitmq_exists(prometheus: PrometheusServer) -> None:
    """Names from other exporters, asked of a real one."""
    names = set(prometheus.api("label/__name__/values"))
    assert set(OTHERS) - names == set()


def test_no_customer_is_in_a_label(prometheus: PrometheusServer) -> None:
    """Nor anything else that a client chooses: the number of series is bounded."""
    series = prometheus.api("series", **{"match[]": '{__name__=~"ingest_.+"}'})
    values = {value for each in series for value in each.values()}
    assert values
    assert not [value for value in values if "scraped" in value or re.search("(tsk|bat)_", value)]
