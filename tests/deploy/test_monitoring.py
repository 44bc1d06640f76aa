"""Queries of alerts, dashboard, KEDA and deploy/monitoring.md use metrics and labels that exist."""

import re
import shutil
import subprocess
from typing import Any

import promql_parser
import pytest

from ingest.domain import metrics, topology
from ingest.domain.metrics import Metric
from tests.deploy.files import DEPLOY, alerts, dashboard_queries, documented_queries, keda_queries, load_yaml

QUERIES = [
    *[(f"panel {panel}", query) for panel, query in dashboard_queries()],
    *[(f"alert {alert['alert']}", alert["expr"]) for alert in alerts()],
    *[("KEDA", query) for query in keda_queries()],
    *[("monitoring.md", query) for query in documented_queries()],
]
TARGET_LABELS = {"job", "instance", "process", "le"}
"""Labels that the scrape or the histogram type adds."""
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
SERVICE_METRICS = {f"{metric.name}{suffix}": metric for metric in metrics.METRICS for suffix in _SUFFIXES[metric.type]}
OTHER_METRICS = {
    "up": set(),
    "process_cpu_seconds_total": set(),
    "process_resident_memory_bytes": set(),
    "rabbitmq_detailed_queue_messages_ready": {"queue"},
    "rabbitmq_detailed_queue_messages": {"queue"},
    "rabbitmq_detailed_queue_messages_bytes": {"queue"},
    "rabbitmq_detailed_queue_consumers": {"queue"},
    "rabbitmq_alarms_memory_used_watermark": set(),
    "rabbitmq_alarms_free_disk_space_watermark": set(),
}
"""Metrics of other exporters with their labels; test_scrape.py checks that a real scrape has them."""


def selectors(query: str) -> list[Any]:
    """Return every vector selector of a query."""
    vector_selectors: list[Any] = []

    def collect(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            vector_selectors.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            vector_selectors.append(node.vector_selector)

    promql_parser.walk(promql_parser.parse(query), collect)
    assert vector_selectors
    return vector_selectors


def labels_of(name: str) -> set[str]:
    return {*(SERVICE_METRICS[name].labels if name in SERVICE_METRICS else OTHER_METRICS[name]), *TARGET_LABELS}


@pytest.mark.parametrize(("source", "query"), QUERIES)
def test_query_uses_existing_metrics_labels_and_label_values(source: str, query: str) -> None:
    grouping_labels: set[str] = set()
    known_labels: set[str] = set()
    for selector in selectors(query):
        assert selector.name in SERVICE_METRICS or selector.name in OTHER_METRICS, (
            f"{source}: the metric {selector.name} does not exist"
        )
        known_labels |= labels_of(selector.name)
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels_of(selector.name), f"{source}: {selector.name} has no label {matcher.name}"
            if selector.name in SERVICE_METRICS:
                assert_label_values_exist(SERVICE_METRICS[selector.name], matcher.value, source)
            elif matcher.name == "queue":
                assert any(re.fullmatch(matcher.value, queue.name) for queue in topology.QUEUES)

    def collect_grouping(node: Any) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            grouping_labels.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(query), collect_grouping)
    assert grouping_labels <= known_labels, source


def assert_label_values_exist(metric: Metric, pattern: str, source: str) -> None:
    """Check that the metric's help lists each value of a pattern, or that it is a path of the API or a status."""
    for value in pattern.split("|"):
        listed = re.search(rf"\b{re.escape(value)}\b", metric.help) is not None
        assert listed or value.startswith("/v1/") or re.fullmatch(r"\d{3}", value), (
            f"{source}: {metric.name} never has the label value {value}"
        )


def test_every_alert_has_a_unique_name_a_severity_a_summary_and_an_action() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert set(alert["annotations"]) == {"summary", "action"}


def test_every_metric_of_the_service_is_in_a_query_or_excluded_here() -> None:
    excluded = {metrics.ADMISSION_DURATION, metrics.LAST_PROGRESS}
    used = {
        SERVICE_METRICS[selector.name]
        for _, query in QUERIES
        for selector in selectors(query)
        if selector.name in SERVICE_METRICS
    }
    assert set(metrics.METRICS) - used == excluded


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian: prometheus) is not on PATH")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus/prometheus.yml"),
        ("check", "rules", "prometheus/alerts.yml"),
    ],
)
def test_promtool_accepts_configuration_and_rules(arguments: tuple[str, ...]) -> None:
    completed = subprocess.run(["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian: prometheus) is not on PATH")
def test_every_alert_fires_and_stays_silent_on_the_series_of_alerts_test_yml() -> None:
    tests = DEPLOY.parent / "tests/deploy/alerts_test.yml"
    completed = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    names = {alert["alert"] for alert in alerts()}
    cases = [case for group in load_yaml(tests)["tests"] for case in group["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names
