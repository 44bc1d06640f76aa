"""Who may reach which port, according to the NetworkPolicies of the example overlay."""

from typing import Any, Final, TypeAlias

import pytest

from tests.deploy.files import manifests

NAMESPACE: Final = "asg-ingest"
OBJECTS: Final = manifests()
POLICIES: Final = [manifest for manifest in OBJECTS if manifest["kind"] == "NetworkPolicy"]
PORT_NAMES: Final = {8080: "http", 8090: "console", 9464: "metrics"}

Pod: TypeAlias = tuple[str, dict[str, str]]
"""Namespace and labels."""


def pod(component: str) -> Pod:
    return NAMESPACE, {"app.kubernetes.io/name": "ingest", "app.kubernetes.io/component": component}


PODS: Final[dict[str, Pod]] = {
    **{name: pod(name) for name in ("shim", "worker", "operator", "topology", "rabbitmq-users", "trim", "console")},
    "oauth2-proxy": (NAMESPACE, {"app.kubernetes.io/name": "oauth2-proxy"}),
    "aerospike": (NAMESPACE, {"app.kubernetes.io/name": "aerospike"}),
    "rabbitmq": (NAMESPACE, {"app.kubernetes.io/name": "rabbitmq"}),
    "prometheus": ("monitoring", {}),
    "keda": ("keda", {}),
    "stranger": (NAMESPACE, {}),
    "ingress": ("ingress-nginx", {}),
}

ALLOWED: Final[dict[tuple[str, int], set[str]]] = {
    ("shim", 8080): set(PODS) - {"shim"},
    ("shim", 9464): {"prometheus", "operator", "console"},
    ("worker", 9464): {"prometheus", "operator", "console"},
    ("console", 8090): {"oauth2-proxy"},
    ("console", 9464): set(),
    ("operator", 9464): set(),
    ("topology", 9464): set(),
    ("rabbitmq-users", 9464): set(),
    ("trim", 9464): set(),
    ("aerospike", 3000): {"shim", "worker", "operator", "console"},
    ("aerospike", 3001): set(),
    ("aerospike", 3002): set(),
    ("aerospike", 3008): set(),
    ("rabbitmq", 5672): {"shim", "worker", "operator", "topology", "trim", "console"},
    ("rabbitmq", 5671): {"shim", "worker", "operator", "topology", "trim", "console"},
    ("rabbitmq", 15672): {"operator", "topology", "rabbitmq-users", "keda", "trim", "console"},
    ("rabbitmq", 15671): {"operator", "topology", "rabbitmq-users", "keda", "trim", "console"},
    ("rabbitmq", 15692): {"prometheus"},
    ("rabbitmq", 4369): set(),
    ("rabbitmq", 25672): set(),
}
"""The pods, other than the target's own kind, that reach a port."""


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    matched: dict[str, str] = selector.get("matchLabels", {})
    return matched.items() <= labels.items()


def comes_from(peer: dict[str, Any], source: Pod) -> bool:
    namespace, labels = source
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
            return False
    elif namespace != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), labels)


def reaches(source: Pod, target: Pod, port: int) -> bool:
    """Return whether any policy allows it; without a policy for the target, Kubernetes allows everything."""
    policies = [policy["spec"] for policy in POLICIES if selects(policy["spec"]["podSelector"], target[1])]
    rules = [rule for spec in policies for rule in spec.get("ingress", [])]
    return not policies or any(
        ("ports" not in rule or {port, PORT_NAMES.get(port)} & {allowed["port"] for allowed in rule["ports"]})
        and ("from" not in rule or any(comes_from(peer, source) for peer in rule["from"]))
        for rule in rules
    )


@pytest.mark.parametrize(("target", "port"), ALLOWED)
def test_port_is_reached_only_by_the_pods_that_use_it(target: str, port: int) -> None:
    sources = {name for name in PODS if name != target and reaches(PODS[name], PODS[target], port)}
    assert sources == ALLOWED[target, port]


@pytest.mark.parametrize(("server", "port"), [("aerospike", 3001), ("aerospike", 3002), ("rabbitmq", 25672)])
def test_nodes_of_a_cluster_reach_each_other(server: str, port: int) -> None:
    assert reaches(PODS[server], PODS[server], port)
