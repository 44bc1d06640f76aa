"""Alerts, dashboard and KEDA's query: every metric and label in them is one that the service has."""

import re
import shutil
import subprocess
from typing import Any

import promql_parser
import pytest

from ingest.domain import metrics, topology
from ingest.domain.metrics import Metric
from tests.deploy.files import DEPLOY, alerts, dashboard_queries, keda_queries, page_queries

QUERIES = [
    *[(f"panel {panel}", query) for panel, query in dashboard_queries()],
    *[(f"alert {alert['alert']}", alert["expr"]) for alert in alerts()],
    *[("KEDA", query) for query in keda_queries()],
    *[("monitoring.md", query) for query in page_queries()],
]
TARGET = {"job", "instance", "process", "le"}
"""Labels that come with the scrape, or with histograms."""
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
OURS = {f"{metric.name}{part}": metric for metric in metrics.METRICS for part in _PARTS[metric.type]}
OTHERS = {
    "up": set(),
    "process_cpu_seconds_total": set(),
    "process_resident_memory_bytes": set(),
    "rabbitmq_detailed_queue_messages_ready": {"queue"},
    "rabbitmq_detailed_queue_messages": {"queue"},
    "rabbitmq_detailed_queue_consumers": {"queue"},
    "rabbitmq_alarms_memory_used_watermark": set(),
    "rabbitmq_alarms_free_disk_space_watermark": set(),
}
"""What other exporters have; a live scrape is asked for them in test_scrape.py."""


def selectors(query: str) -> list[Any]:
    found: list[Any] = []

    def note(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)

    promql_parser.walk(promql_parser.parse(query), note)
    assert found
    return found


def labels_of(name: str) -> set[str]:
    return {*(OURS[name].labels if name in OURS else OTHERS[name]), *TARGET}


@pytest.mark.parametrize(("where", "query"), QUERIES)
def test_every_metric_exists_with_its_labels(where: str, query: str) -> None:
    """Names, the labels selected by and grouped by, and what a counted outcome, step or queue can be."""
    grouped: set[str] = set()
    known: set[str] = set()
    for selector in selectors(query):
        assert selector.name in OURS or selector.name in OTHERS, f"{where}: there is no metric {selector.name}"
        known |= labels_of(selector.name)
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels_of(selector.name), f"{where}: {selector.name} has no label {matcher.name}"
            if selector.name in OURS:
                assert_can_be(OURS[selector.name], matcher.value, where)
            elif matcher.name == "queue":
                assert any(re.fullmatch(matcher.value, queue.name) for queue in topology.QUEUES)

    def note(node: Any) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            grouped.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(query), note)
    assert grouped <= known, where


def assert_can_be(metric: Metric, pattern: str, where: str) -> None:
    """The value of a label stands in the metric's help, or is a path of the API or a status."""
    for value in pattern.split("|"):
        listed = re.search(rf"\b{re.escape(value)}\b", metric.help) is not None
        assert listed or value.startswith("/v1/") or re.fullmatch(r"\d{3}", value), (
            f"{where}: {metric.name} never has {value}"
        )


def test_every_alert_says_what_to_do() -> None:
    """Severity, summary, action; names once."""
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert set(alert["annotations"]) == {"summary", "action"}


def test_every_metric_of_the_service_is_shown_or_left_out_knowingly() -> None:
    """What is counted and seen nowhere is listed here."""
    unseen = {
        metrics.PAYLOAD_MISMATCHES,
        metrics.ADMISSION_DURATION,
        metrics.LAST_PROGRESS,
        metrics.DELIVERIES,
    }
    used = {OURS[selector.name] for _, query in QUERIES for selector in selectors(query) if selector.name in OURS}
    assert set(metrics.METRICS) - used <= unseen


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian: prometheus) is not on PATH")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus/prometheus.yml"),
        ("check", "rules", "prometheus/alerts.yml"),
    ],
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    """The rules and the configuration, with Prometheus' own tool."""
    done = subprocess.run(["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian: prometheus) is not on PATH")
def test_every_alert_fires_when_it_should_and_only_then() -> None:
    """promtool runs each rule on series made for it; tests/deploy/alerts_test.yml tests each alert of the file."""
    tests = DEPLOY.parent / "tests/deploy/alerts_test.yml"
    done = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"alertname: (\w+)", tests.read_text())) == {alert["alert"] for alert in alerts()}
