"""deploy/ as the tests read it."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def load(path: Path) -> Any:
    """The one document of a YAML file."""
    return yaml.safe_load(path.read_text())


def manifests() -> list[dict[str, Any]]:
    """Every Kubernetes object in the files, without what kustomize itself reads."""
    found = []
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        if path.name not in ("kustomization.yaml", "names.yaml"):
            found += list(yaml.safe_load_all(path.read_text()))
    return found


def dashboard_queries() -> list[tuple[str, str]]:
    """(panel, PromQL), with Grafana's variable for the rate's window filled in."""
    panels = json.loads((DEPLOY / "grafana/dashboards/ingest.json").read_text())["panels"]
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "1m"))
        for panel in panels
        for target in panel.get("targets", [])
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in load(DEPLOY / "prometheus/alerts.yml")["groups"] for rule in group["rules"]]


def keda_queries() -> list[str]:
    triggers = [each["spec"]["triggers"] for each in manifests() if each["kind"] == "ScaledObject"]
    return [trigger["metadata"]["query"] for some in triggers for trigger in some if trigger["type"] == "prometheus"]


def page_queries() -> list[str]:
    """PromQL in the operators' pages: what looks like a function of a metric in code."""
    text = (DEPLOY / "monitoring.md").read_text()
    return re.findall(r"`((?:\d\S* \* )?\w+[( ][^`]*ingest_[^`]+)`", text)
