"""The console in docker-compose.yml and on Kubernetes."""

import re
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from ingest import settings
from ingest.console.access import MIN_TOKEN, Access
from ingest.domain.errors import ConfigurationError
from tests.deploy.files import DEPLOY, KUBERNETES, load_yaml
from tests.unit.console.browser import Browser

COMPOSE: dict[str, Any] = load_yaml(DEPLOY / "docker-compose.yml")
SERVICE: dict[str, Any] = COMPOSE["services"]["console"]
OBJECTS = {
    (manifest["kind"], manifest["metadata"]["name"]): manifest
    for manifest in yaml.safe_load_all((KUBERNETES / "components/console/console.yaml").read_text())
}
POD: dict[str, Any] = OBJECTS["Deployment", "ingest-console"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PORT = settings.load().console_port
MANAGEMENT = "INGEST_MANAGEMENT_URL"


def scraped(arguments: list[str]) -> list[str]:
    """Return the hosts after `--scrape`, whose ports must be that of the image's metrics."""
    urls = [urlsplit(url) for url in re.findall(r"http://\S+", " ".join(arguments))]
    assert {url.port for url in urls} == {9464}
    return [url.hostname or "" for url in urls]


def test_compose_starts_the_console_only_if_it_is_named() -> None:
    assert SERVICE["profiles"] == ["console"]
    assert SERVICE["command"][0] == "console"
    assert scraped(SERVICE["command"]) == ["shim", "worker"]
    assert SERVICE["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]


def test_compose_gives_it_a_token_and_a_user_of_the_management_api_that_can_change_nothing() -> None:
    environment = SERVICE["environment"]
    assert environment["INGEST_CONSOLE_HOST"] == "0.0.0.0"
    assert environment["INGEST_CONSOLE_TOKEN"].startswith("${INGEST_CONSOLE_TOKEN:?")
    assert environment[MANAGEMENT].startswith("http://monitoring:")
    assert set(environment) - {"INGEST_CONSOLE_HOST", "INGEST_CONSOLE_TOKEN", "TMPDIR", MANAGEMENT} == {
        "INGEST_BROKER_URL",
        "INGEST_STORE_URL",
    }


def test_compose_keeps_temporary_files_on_disk() -> None:
    """/tmp is in memory. The dead letters that the console has read can have gigabytes."""
    directory = SERVICE["environment"]["TMPDIR"]
    assert SERVICE["volumes"] == [f"console:{directory}"]
    assert directory not in [mount.split(":")[0] for mount in SERVICE["tmpfs"]]
    assert "console" in COMPOSE["volumes"]


def test_kubernetes_runs_one_console_because_two_would_read_the_same_queue() -> None:
    spec = OBJECTS["Deployment", "ingest-console"]["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
    assert POD["terminationGracePeriodSeconds"] >= settings.load().shutdown_deadline + 10


def test_kubernetes_gives_it_only_the_credentials_that_it_needs() -> None:
    assert [source for source in CONTAINER["envFrom"] if "secretRef" in source] == [
        {"secretRef": {"name": "ingest"}},
        {"secretRef": {"name": "ingest-console"}},
    ]
    values = {variable["name"]: variable.get("value") or variable["valueFrom"] for variable in CONTAINER["env"]}
    assert values == {
        "INGEST_CONSOLE_HOST": "0.0.0.0",
        MANAGEMENT: {"secretKeyRef": {"name": "rabbitmq-monitoring", "key": "management-url"}},
    }


def test_example_token_must_be_replaced() -> None:
    secrets = KUBERNETES / "overlays/example/secrets/ingest-console.env"
    name, _, token = secrets.read_text().strip().partition("=")
    assert name == "INGEST_CONSOLE_TOKEN"
    with pytest.raises(ConfigurationError, match=f"at least {MIN_TOKEN} characters"):
        Access("0.0.0.0", token)


async def test_probes_need_no_token() -> None:
    assert CONTAINER["ports"] == [{"name": "console", "containerPort": PORT}]
    browser = Browser(access=Access("0.0.0.0", "correct horse battery"))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        request = CONTAINER[probe]["httpGet"]
        assert request["port"] == "console"
        answer = await browser.request("GET", request["path"], host=f"10.42.0.7:{PORT}")
        assert answer.status_code == httpx.codes.OK
    (path,) = re.findall(rf"http://127\.0\.0\.1:{PORT}(/\w+)'", SERVICE["healthcheck"]["test"][-1])
    assert path == CONTAINER["livenessProbe"]["httpGet"]["path"]


def test_kubernetes_keeps_temporary_files_on_disk_within_a_limit() -> None:
    (volume,) = POD["volumes"]
    assert set(volume["emptyDir"]) == {"sizeLimit"}, "no medium: Memory"
    assert CONTAINER["volumeMounts"] == [{"name": volume["name"], "mountPath": "/tmp"}]
    assert re.findall(r"TMPDIR=(\S+)", (DEPLOY / "Dockerfile").read_text()) == ["/tmp"]


def test_kubernetes_scrapes_all_pods_also_those_that_are_not_ready() -> None:
    for host, component in zip(scraped(CONTAINER["args"]), ("shim", "worker"), strict=True):
        spec = OBJECTS["Service", host]["spec"]
        assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
        assert spec["selector"] == {"app.kubernetes.io/name": "ingest", "app.kubernetes.io/component": component}
        assert [port["port"] for port in spec["ports"]] == [9464]


def test_kubernetes_does_not_expose_it_outside_the_cluster() -> None:
    assert {kind for kind, _ in OBJECTS} == {"Deployment", "Service"}
    service = OBJECTS["Service", "ingest-console"]["spec"]
    assert "type" not in service
    assert service["selector"] == OBJECTS["Deployment", "ingest-console"]["spec"]["selector"]["matchLabels"]
    assert [port["targetPort"] for port in service["ports"]] == ["console"]
