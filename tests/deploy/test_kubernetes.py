"""The Kubernetes manifests are valid and agree with one another, with RabbitMQ's users and with the settings."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import kubernetes_validate
import pytest
import yaml

from ingest import settings
from ingest.domain import topology
from tests.deploy.files import DEPLOY, KUBERNETES, alerts, load_yaml, manifests
from tests.servers import RabbitServer

VERSIONS = ("1.30", "1.34", "1.37")
CUSTOM_KINDS = ("ScaledObject", "TriggerAuthentication", "PodMonitor", "PrometheusRule")
OBJECTS = manifests()
OVERLAY = KUBERNETES / "overlays/example"
"""The overlay that deploy/README.md tells operators to copy."""


@pytest.fixture(scope="module")
def built() -> list[dict[str, Any]]:
    """The objects that kustomize builds from the example overlay."""
    command = next(
        ([name, *rest] for name, *rest in (("kustomize", "build"), ("kubectl", "kustomize")) if shutil.which(name)),
        None,
    )
    if command is None:
        pytest.skip("neither kustomize nor kubectl is on PATH; the other tests still check the files")
    completed = subprocess.run([*command, OVERLAY], capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stderr
    return [manifest for manifest in yaml.safe_load_all(completed.stdout) if manifest]


def by_name(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {manifest["metadata"]["name"]: manifest for manifest in objects if manifest["kind"] == kind}


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield (name, pod template, container) of each Deployment, Job and CronJob; every pod has one container."""
    for manifest in objects:
        if manifest["kind"] in ("Deployment", "Job", "CronJob"):
            spec = manifest["spec"].get("jobTemplate", manifest)["spec"]
            template = spec["template"]
            (container,) = template["spec"]["containers"]
            yield manifest["metadata"]["name"], template, container


def services(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield what `pods` yields, of the Deployments that run `serve` or `work`."""
    for name, template, container in pods(list(by_name(objects, "Deployment").values())):
        if name not in ("ingest-operator", "ingest-console"):
            yield name, template, container


def match_labels(manifest: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = manifest["spec"]["selector"]["matchLabels"]
    return labels


def secret_keys() -> dict[str, set[str]]:
    """Return the keys of each Secret that the example generates."""
    return {
        generator["name"]: {line.split("=")[0] for line in (OVERLAY / generator["envs"][0]).read_text().split()}
        for generator in load_yaml(OVERLAY / "kustomization.yaml")["secretGenerator"]
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_for_the_kubernetes_version(version: str) -> None:
    """Custom resources are left out because their schemas are not part of Kubernetes."""
    for manifest in OBJECTS:
        if manifest["kind"] not in CUSTOM_KINDS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_example_overlay_builds_valid_objects_in_its_namespace_with_its_image(built: list[dict[str, Any]]) -> None:
    assert {manifest["kind"] for manifest in built} == {manifest["kind"] for manifest in OBJECTS} | {"Secret"}
    for manifest in built:
        if manifest["kind"] not in CUSTOM_KINDS:
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "asg-ingest"
    assert {container["image"] for _, _, container in pods(built)} == {"registry.example.com/asg-ingest:0.1.0"}


def test_built_objects_refer_to_secrets_by_their_hashed_names(built: list[dict[str, Any]]) -> None:
    """kustomize adds a hash to the name of each Secret and must replace every reference to it."""
    text = json.dumps([manifest for manifest in built if manifest["kind"] != "Secret"])
    secrets = by_name(built, "Secret")
    assert len(secrets) == len(secret_keys())
    for name in secrets:
        assert f'"{name}"' in text


def test_kustomizations_list_every_file_in_their_folders_and_only_existing_files() -> None:
    for path in KUBERNETES.rglob("kustomization.yaml"):
        kustomization = load_yaml(path)
        listed = {*kustomization["resources"], *kustomization.get("configurations", [])}
        files = {file.name for file in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in listed if name.endswith(".yaml")} == files
        assert all((path.parent / name).exists() for name in [*listed, *kustomization.get("components", [])])


def test_selectors_select_the_pods_that_they_are_named_after() -> None:
    labels = {name: template["metadata"]["labels"] for name, template, _ in pods(OBJECTS)}

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, pod_labels in labels.items() if selector.items() <= pod_labels.items()}

    for name, deployment in by_name(OBJECTS, "Deployment").items():
        assert selected(match_labels(deployment)) == {name}
        for constraint in deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert selected(constraint["labelSelector"]["matchLabels"]) == {name}
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for name, manifest in by_name(OBJECTS, kind).items():
            assert selected(match_labels(manifest)) == {name}
    assert selected(by_name(OBJECTS, "Service")["ingest-shim"]["spec"]["selector"]) == {"ingest-shim"}


def test_every_pod_has_a_network_policy() -> None:
    components = {template["metadata"]["labels"]["app.kubernetes.io/component"] for _, template, _ in pods(OBJECTS)}
    covered: set[str] = set()
    for policy in by_name(OBJECTS, "NetworkPolicy").values():
        pod_selector = policy["spec"]["podSelector"]
        covered.add(pod_selector["matchLabels"].get("app.kubernetes.io/component", ""))
        for expression in pod_selector.get("matchExpressions", []):
            covered |= set(expression["values"])
    assert components <= covered


def test_probes_service_policies_and_scrapes_use_ports_that_the_containers_have() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    exposed = set(map(int, re.findall(r"^EXPOSE (.+)$", dockerfile, re.MULTILINE)[0].split()))
    metrics = int(re.findall(r"INGEST_METRICS_PORT=(\d+)", dockerfile)[0])
    for name, template, container in services(OBJECTS):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert set(ports.values()) <= exposed
        assert ports["metrics"] == metrics == int(template["metadata"]["annotations"]["prometheus.io/port"])
        for probe, path in (("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
            assert container[probe]["httpGet"]["path"] == path
            assert container[probe]["httpGet"]["port"] in ports
        endpoints = by_name(OBJECTS, "PodMonitor")[name]["spec"]["podMetricsEndpoints"]
        assert {endpoint["port"] for endpoint in endpoints} == {"metrics"}
        assert container["args"] == [{"ingest-shim": "serve", "ingest-worker": "work"}[name]]
    assert {port["targetPort"] for port in by_name(OBJECTS, "Service")["ingest-shim"]["spec"]["ports"]} == {"http"}


def test_pods_meet_the_restricted_pod_security_standard() -> None:
    """They also have a read-only root, the image's user and bounded memory, but not a service account token."""
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
        assert spec["serviceAccountName"] in by_name(OBJECTS, "ServiceAccount")


def test_grace_period_covers_the_whole_shutdown() -> None:
    """A shutdown takes preStop, the shutdown deadline and the supervisor's 5 s; 5 s are kept in reserve."""
    deadline = float(by_name(OBJECTS, "ConfigMap")["ingest"]["data"]["INGEST_SHUTDOWN_DEADLINE"])
    for name, template, container in services(OBJECTS):
        pre_stop = container.get("lifecycle", {}).get("preStop", {"exec": {"command": ["sleep", "0"]}})
        needed = float(pre_stop["exec"]["command"][1]) + deadline + 5 + 5
        assert template["spec"]["terminationGracePeriodSeconds"] >= needed, name


def test_settings_are_valid_and_referenced_secrets_are_in_the_example() -> None:
    known_settings = {setting.variable for setting in settings.described()}
    secrets = secret_keys()
    data = by_name(OBJECTS, "ConfigMap")["ingest"]["data"]
    assert set(data) | secrets["ingest"] | secrets["ingest-operator"] <= known_settings
    settings.load(**{name.removeprefix("INGEST_").lower(): value for name, value in data.items()})
    referenced: set[tuple[str, str]] = set()
    for _, template, container in pods(OBJECTS):
        for source in container.get("envFrom", []):
            assert source.get("configMapRef", {"name": "ingest"})["name"] == "ingest"
            assert source.get("secretRef", {"name": "ingest"})["name"] in secrets
        for variable in container.get("env", []):
            if "value" in variable:
                assert variable["name"] in known_settings
            else:
                reference = variable["valueFrom"]["secretKeyRef"]
                referenced.add((reference["name"], reference["key"]))
        for volume in template["spec"]["volumes"]:
            assert volume.get("secret", {"secretName": "ingest"})["secretName"] in secrets
    for reference in by_name(OBJECTS, "TriggerAuthentication")["ingest-rabbitmq"]["spec"]["secretTargetRef"]:
        referenced.add((reference["name"], reference["key"]))
    assert {(name, key) for name, key in referenced if key not in secrets[name]} == set()
    users = {user["name"] for user in load_yaml(DEPLOY / "rabbitmq/users.json")["users"]}
    assert secrets["rabbitmq-users"] - {"admin-url"} <= users


def test_keda_scales_the_worker_on_the_length_of_every_ingest_queue_and_on_the_age() -> None:
    (scaled,) = by_name(OBJECTS, "ScaledObject").values()
    triggers = scaled["spec"]["triggers"]
    assert [trigger["type"] for trigger in triggers] == ["rabbitmq", "rabbitmq", "rabbitmq", "prometheus"]
    selected = [queue for trigger in triggers[:-1] for queue in queues_of(trigger["metadata"])]
    assert sorted(selected) == sorted(topology.INGEST_QUEUES)
    authentications = by_name(OBJECTS, "TriggerAuthentication")
    for trigger in triggers:
        assert trigger.get("authenticationRef", {"name": "ingest-rabbitmq"})["name"] in authentications
    assert scaled["spec"]["scaleTargetRef"]["name"] == "ingest-worker"
    assert "ingest-worker" in by_name(OBJECTS, "Deployment")


def queues_of(metadata: dict[str, str]) -> list[str]:
    """Return the queues that a RabbitMQ trigger adds up. RabbitMQ's expressions match anywhere in a name."""
    if metadata.get("useRegex") == "true":
        assert metadata["protocol"] == "http"
        assert metadata["operation"] == "sum"
        return [queue.name for queue in topology.QUEUES if re.search(metadata["queueName"], queue.name)]
    return [metadata["queueName"]]


def test_rabbitmq_selects_the_queues_of_a_keda_trigger_by_its_expression(
    rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """KEDA sends this request."""
    vhost = urlsplit(rabbitmq_url).path[1:]
    rabbitmq.api("POST", f"definitions/{vhost}", load_yaml(DEPLOY / "rabbitmq/definitions.json"))
    (scaled,) = by_name(OBJECTS, "ScaledObject").values()
    for trigger in scaled["spec"]["triggers"][:-1]:
        metadata = trigger["metadata"]
        query = {"page": 1, "use_regex": "true", "pagination": "false", "name": metadata["queueName"], "page_size": 100}
        page = rabbitmq.api("GET", f"queues/{vhost}?{urlencode(query)}")
        assert sorted(queue["name"] for queue in page["items"]) == sorted(queues_of(metadata))


def test_only_operator_and_topology_have_credentials_for_the_management_api() -> None:
    """A shim or worker that is taken over cannot change policies."""
    secrets = secret_keys()
    assert {name for name, keys in secrets.items() if "INGEST_MANAGEMENT_URL" in keys} == {"ingest-operator"}
    holders = {name for name, template, _ in pods(OBJECTS) if '"ingest-operator"' in json.dumps(template["spec"])}
    assert holders == {"ingest-operator", "ingest-topology"}


def test_trim_has_only_the_credentials_that_it_needs() -> None:
    """It reads and publishes dead letters as the service's user, and sees policies and sizes as `monitoring`."""
    job = by_name(OBJECTS, "CronJob")["ingest-trim"]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    (container,) = job["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["dlq", "trim"]
    assert container["envFrom"] == [{"configMapRef": {"name": "ingest"}}]
    references = {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]}
    assert references == {
        "INGEST_BROKER_URL": {"name": "ingest", "key": "INGEST_BROKER_URL"},
        "INGEST_MANAGEMENT_URL": {"name": "rabbitmq-monitoring", "key": "management-url"},
    }
    values = (OVERLAY / "secrets/rabbitmq-monitoring.env").read_text().splitlines()
    assert "management-url=http://monitoring:REPLACE@rabbitmq:15672" in values


def test_operator_waits_for_commands_and_ends_at_once() -> None:
    """`sleep` as process 1 ignores SIGTERM, so nothing is gained by waiting for it."""
    deployment = by_name(OBJECTS, "Deployment")["ingest-operator"]
    spec = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 1
    assert spec["containers"][0]["command"] == ["sleep", "infinity"]
    assert spec["terminationGracePeriodSeconds"] <= 5
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe"} & set(spec["containers"][0])


def test_deployment_with_an_autoscaler_does_not_set_replicas() -> None:
    (autoscaler,) = by_name(OBJECTS, "HorizontalPodAutoscaler").values()
    deployment = by_name(OBJECTS, "Deployment")[autoscaler["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in deployment["spec"]


def test_built_deployments_leave_replicas_to_the_autoscalers(built: list[dict[str, Any]]) -> None:
    deployments = by_name(built, "Deployment")
    fixed = {name for name, deployment in deployments.items() if "replicas" in deployment["spec"]}
    assert fixed == {"ingest-operator", "ingest-console"}
    assert len(deployments) == 4


def test_prometheus_rule_contains_the_alerts_of_the_rules_file() -> None:
    """The command at the top of components/monitoring/alerts.yaml updates the PrometheusRule."""
    (prometheus_rule,) = by_name(OBJECTS, "PrometheusRule").values()
    assert [rule for group in prometheus_rule["spec"]["groups"] for rule in group["rules"]] == alerts()
