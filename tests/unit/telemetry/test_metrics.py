"""The definitions of metrics, and the meter that exports them to Prometheus."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ingest.domain import metrics
from ingest.domain.metrics import METRICS
from ingest.telemetry.prometheus import PrometheusMeter, shared_registry
from tests.support.metrics_table import markdown

ROOT = Path(__file__).parents[3]


def samples(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The values of all series, by metric name and labels."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_table_for_operators_equals_the_definitions() -> None:
    assert (ROOT / "deploy/metrics.md").read_text() == markdown(), (
        "update it with `python -m tests.support.metrics_table > deploy/metrics.md`"
    )


def test_monitoring_page_names_only_metrics_that_exist() -> None:
    names = {metric.name for metric in METRICS}
    published = re.findall(r"\bingest_[a-z_]+", (ROOT / "deploy/monitoring.md").read_text())
    assert len(published) > 20
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in published} <= names


def test_metric_names_and_labels_follow_the_conventions() -> None:
    """Names have the prefix and base units, only counters end with `_total`, and no label has unlimited values."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"ingest_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert (metric.type == "histogram") == bool(metric.buckets)
        assert not re.search(r"milli|micro|_ms|_us|minutes|hours", metric.name)
        assert not {"cust_id", "task_id", "batch_id", "path", "id"} & {*metric.labels}
        if metric.type == "gauge" and metric is not metrics.BUILD_INFO:
            assert metric.labels[0] == "process"


@given(st.lists(st.floats(0, 100), max_size=50), st.lists(st.floats(0, 100), max_size=50))
def test_observing_many_values_at_once_equals_observing_each_value(
    first: Iterable[float], second: Iterable[float]
) -> None:
    meter = PrometheusMeter()
    registry = CollectorRegistry()
    metric = metrics.ADMISSION_DURATION
    oracle = Histogram(metric.name, metric.help, registry=registry, buckets=metric.buckets)
    for values in (first, second):
        meter.observe(metric, values)
        for value in values:
            oracle.observe(value)
    values_of_meter, values_of_oracle = samples(meter.registry), samples(registry)
    assert values_of_meter.keys() >= values_of_oracle.keys()
    for series, value in values_of_oracle.items():
        assert values_of_meter[series] == pytest.approx(value)


def test_counters_are_summed_over_processes_and_survive_a_restart(tmp_path: Path) -> None:
    """The second process 0 replaces the first one. Gauges are separate for each process."""
    queue = frozenset({("queue", "q")})
    for process, count in (("0", 1), ("1", 10), ("0", 100)):
        meter = PrometheusMeter(process, tmp_path)
        meter.add(metrics.DELIVERIES, count, "q")
        meter.observe(metrics.PUBLISH_DURATION, [0.002] * count)
        meter.set(metrics.DELIVERIES_IN_FLIGHT, count, "q")
    PrometheusMeter()  # so that later tests use memory, not files
    values = samples(shared_registry(tmp_path))
    assert values["ingest_deliveries_total", queue] == 111
    assert values["ingest_publish_duration_seconds_count", frozenset()] == 111
    in_flight = {
        dict(labels)["process"]: value
        for (name, labels), value in values.items()
        if name.endswith("deliveries_in_flight")
    }
    assert in_flight == {"0": 100, "1": 10}
    assert len(list(tmp_path.iterdir())) == 6  # 3 metric types, 2 process numbers
