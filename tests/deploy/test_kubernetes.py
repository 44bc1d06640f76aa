"""The Kubernetes manifests: valid, and consistent with one another, with RabbitMQ's users and with the settings."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ingest import settings
from ingest.domain import topology
from tests.deploy.files import DEPLOY, KUBERNETES, alerts, load, manifests

VERSIONS = ("1.30", "1.34", "1.37")
CUSTOM = ("ScaledObject", "TriggerAuthentication", "PodMonitor", "PrometheusRule")
OBJECTS = manifests()
OVERLAY = KUBERNETES / "overlays/example"


@pytest.fixture(scope="module")
def built() -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of the example."""
    command = next(
        ([name, *rest] for name, *rest in (("kustomize", "build"), ("kubectl", "kustomize")) if shutil.which(name)),
        None,
    )
    if command is None:
        pytest.skip("neither kustomize nor kubectl is on PATH; the files themselves are checked all the same")
    done = subprocess.run([*command, OVERLAY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, pod template, container): each pod has one."""
    for each in objects:
        if each["kind"] in ("Deployment", "Job"):
            template = each["spec"]["template"]
            (container,) = template["spec"]["containers"]
            yield each["metadata"]["name"], template, container


def secret_keys() -> dict[str, set[str]]:
    """The keys of each Secret that the example generates."""
    return {
        generator["name"]: {line.split("=")[0] for line in (OVERLAY / generator["envs"][0]).read_text().split()}
        for generator in load(OVERLAY / "kustomization.yaml")["secretGenerator"]
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(version: str) -> None:
    """Strictly, for the versions of Kubernetes in use; custom resources have no schema here and are known by name."""
    for each in OBJECTS:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


def test_the_example_builds_and_fits(built: list[dict[str, Any]]) -> None:
    """All objects of base and components arrive, valid, in one namespace, with the image of the overlay."""
    assert {(each["kind"]) for each in built} == {each["kind"] for each in OBJECTS} | {"Secret"}
    for each in built:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, VERSIONS[-1], strict=True)
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"] == "asg-ingest"
    assert {container["image"] for _, _, container in pods(built)} == {"registry.example.com/asg-ingest:0.1.0"}


def test_secrets_are_found_under_the_names_they_get(built: list[dict[str, Any]]) -> None:
    """With the hash that kustomize adds, in pods and in KEDA's authentication alike."""
    text = json.dumps([each for each in built if each["kind"] != "Secret"])
    for name in of(built, "Secret"):
        assert f'"{name}"' in text


def test_kustomizations_list_every_file() -> None:
    """No manifest is forgotten, none is listed that is not there."""
    for path in KUBERNETES.rglob("kustomization.yaml"):
        listed = load(path)
        named = {*listed["resources"], *listed.get("configurations", [])}
        there = {each.name for each in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in named if name.endswith(".yaml")} == there
        assert all((path.parent / name).exists() for name in [*named, *listed.get("components", [])])


def test_selectors_meet_their_pods() -> None:
    """Deployments, Service, disruption budgets, network policies, spread and PodMonitors select what they mean to."""
    labels = {name: template["metadata"]["labels"] for name, template, _ in pods(OBJECTS)}

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    for name, each in of(OBJECTS, "Deployment").items():
        assert selected(each["spec"]["selector"]["matchLabels"]) == {name}
        for constraint in each["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert selected(constraint["labelSelector"]["matchLabels"]) == {name}
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for name, each in of(OBJECTS, kind).items():
            assert selected(each["spec"]["selector"]["matchLabels"]) == {name}
    assert selected(of(OBJECTS, "Service")["ingest-shim"]["spec"]["selector"]) == {"ingest-shim"}
    components = {each["app.kubernetes.io/component"] for each in labels.values()}
    covered: set[str] = set()
    for each in of(OBJECTS, "NetworkPolicy").values():
        covered |= {each["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component", "")}
        for expression in each["spec"]["podSelector"].get("matchExpressions", []):
            covered |= set(expression["values"])
    assert components <= covered


def test_ports_and_probes_meet() -> None:
    """Probes, Service, policies and scrapes name ports that the containers have, where the image listens."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    exposed = set(map(int, re.findall(r"^EXPOSE (.+)$", dockerfile, re.MULTILINE)[0].split()))
    metrics = int(re.findall(r"INGEST_METRICS_PORT=(\d+)", dockerfile)[0])
    for name, template, container in pods(list(of(OBJECTS, "Deployment").values())):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert set(ports.values()) <= exposed
        assert ports["metrics"] == metrics == int(template["metadata"]["annotations"]["prometheus.io/port"])
        for probe, path in (("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
            assert container[probe]["httpGet"]["path"] == path
            assert container[probe]["httpGet"]["port"] in ports
        for rule in of(OBJECTS, "NetworkPolicy")[name]["spec"]["ingress"]:
            assert {port["port"] for port in rule["ports"]} == set(ports)
        assert {each["port"] for each in of(OBJECTS, "PodMonitor")[name]["spec"]["podMetricsEndpoints"]} == {"metrics"}
        assert container["args"] == [{"ingest-shim": "serve", "ingest-worker": "work"}[name]]
    assert {port["targetPort"] for port in of(OBJECTS, "Service")["ingest-shim"]["spec"]["ports"]} == {"http"}


def test_pods_have_no_rights() -> None:
    """The restricted pod security standard, a read-only root, no token, bounded memory, the image's own user."""
    (user,) = re.findall(r"^USER (\d+):\d+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for _, template, container in pods(OBJECTS):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == int(user)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in spec["volumes"]}
        assert mounts["tmp"]["mountPath"] == "/tmp"
        assert spec["serviceAccountName"] in of(OBJECTS, "ServiceAccount")


def test_pods_have_time_to_stop() -> None:
    """The grace period covers preStop, the shutdown deadline and the supervisor's 5 seconds, with 5 to spare."""
    deadline = float(of(OBJECTS, "ConfigMap")["ingest"]["data"]["INGEST_SHUTDOWN_DEADLINE"])
    for name, template, container in pods(list(of(OBJECTS, "Deployment").values())):
        before = container.get("lifecycle", {}).get("preStop", {"exec": {"command": ["sleep", "0"]}})
        needed = float(before["exec"]["command"][1]) + deadline + 5 + 5
        assert template["spec"]["terminationGracePeriodSeconds"] >= needed, name


def test_settings_and_secrets_exist() -> None:
    """Every INGEST_* is a setting with a valid value; every Secret and key that is asked for is in the example."""
    known = {name for name, _, _ in settings.described()}
    secrets = secret_keys()
    data = of(OBJECTS, "ConfigMap")["ingest"]["data"]
    assert set(data) | secrets["ingest"] <= known
    settings.load(**{name.removeprefix("INGEST_").lower(): value for name, value in data.items()})
    asked: set[tuple[str, str]] = set()
    for _, template, container in pods(OBJECTS):
        for source in container.get("envFrom", []):
            assert source.get("configMapRef", {"name": "ingest"})["name"] == "ingest"
            assert source.get("secretRef", {"name": "ingest"})["name"] in secrets
        for variable in container.get("env", []):
            reference = variable["valueFrom"]["secretKeyRef"]
            asked.add((reference["name"], reference["key"]))
        for volume in template["spec"]["volumes"]:
            assert volume.get("secret", {"secretName": "ingest"})["secretName"] in secrets
    for reference in of(OBJECTS, "TriggerAuthentication")["ingest-rabbitmq"]["spec"]["secretTargetRef"]:
        asked.add((reference["name"], reference["key"]))
    assert {(name, key) for name, key in asked if key not in secrets[name]} == set()
    users = {user["name"] for user in load(DEPLOY / "rabbitmq/users.json")["users"]}
    assert secrets["rabbitmq-users"] - {"admin-url"} <= users


def test_the_workers_scale_on_their_queues() -> None:
    """Length of both queues and age; the target exists, and the autoscalers do not quarrel with `replicas`."""
    (scaled,) = of(OBJECTS, "ScaledObject").values()
    triggers = scaled["spec"]["triggers"]
    assert [each["type"] for each in triggers] == ["rabbitmq", "rabbitmq", "prometheus"]
    assert {each["metadata"].get("queueName") for each in triggers} == {
        topology.INGEST_TASKS,
        topology.INGEST_BATCHES,
        None,
    }
    authentications = of(OBJECTS, "TriggerAuthentication")
    assert all(
        each.get("authenticationRef", {"name": "ingest-rabbitmq"})["name"] in authentications for each in triggers
    )
    deployments = of(OBJECTS, "Deployment")
    assert scaled["spec"]["scaleTargetRef"]["name"] in deployments
    (autoscaler,) = of(OBJECTS, "HorizontalPodAutoscaler").values()
    assert "replicas" not in deployments[autoscaler["spec"]["scaleTargetRef"]["name"]]["spec"]


def test_keda_has_the_say_over_replicas(built: list[dict[str, Any]]) -> None:
    """With the component, no Deployment says how many."""
    assert not [name for name, each in of(built, "Deployment").items() if "replicas" in each["spec"]]


def test_the_prometheus_rule_is_the_rules_file() -> None:
    """One set of alerts. If not: the command at the top of components/monitoring/alerts.yaml."""
    (rule,) = of(OBJECTS, "PrometheusRule").values()
    assert [each for group in rule["spec"]["groups"] for each in group["rules"]] == alerts()
