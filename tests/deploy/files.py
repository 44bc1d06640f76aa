"""Readers of the files in deploy/."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def load_yaml(path: Path) -> Any:
    """Return the document of a YAML file that contains a single document."""
    return yaml.safe_load(path.read_text())


def manifests() -> list[dict[str, Any]]:
    """Return every Kubernetes object in the files, without the files that only kustomize reads."""
    objects: list[dict[str, Any]] = []
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        if path.name not in ("kustomization.yaml", "names.yaml"):
            objects += yaml.safe_load_all(path.read_text())
    return objects


def dashboard_queries() -> list[tuple[str, str]]:
    """Return (panel, PromQL) pairs; Grafana's variable for the window of a rate is replaced by a value."""
    panels = json.loads((DEPLOY / "grafana/dashboards/ingest.json").read_text())["panels"]
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "1m"))
        for panel in panels
        for target in panel.get("targets", [])
    ]


def alerts() -> list[dict[str, Any]]:
    """Return the alerting rules of every group."""
    return [rule for group in load_yaml(DEPLOY / "prometheus/alerts.yml")["groups"] for rule in group["rules"]]


def keda_queries() -> list[str]:
    """Return the PromQL of the Prometheus triggers that scale the workers."""
    return [
        trigger["metadata"]["query"]
        for manifest in manifests()
        if manifest["kind"] == "ScaledObject"
        for trigger in manifest["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]


def documented_queries() -> list[str]:
    """Return the PromQL in deploy/monitoring.md: code that looks like a function of a metric."""
    text = (DEPLOY / "monitoring.md").read_text()
    return re.findall(r"`((?:\d\S* \* )?\w+[( ][^`]*ingest_[^`]+)`", text)
