"""The definitions, and the meter that puts them into Prometheus' format."""

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
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_the_table_is_what_the_code_defines() -> None:
    """Mend it with `python -m tests.support.metrics_table > deploy/metrics.md`."""
    assert (ROOT / "deploy/metrics.md").read_text() == markdown()


def test_the_page_for_operators_names_metrics_that_exist() -> None:
    """In the scrape it shows and in its queries."""
    known = {metric.name for metric in METRICS}
    shown = re.findall(r"\bingest_[a-z_]+", (ROOT / "deploy/monitoring.md").read_text())
    assert len(shown) > 20
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} <= known


def test_names_follow_the_conventions() -> None:
    """A prefix, base units, `_total` for counters only, no label that could grow without end."""
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
def test_many_at_once_are_as_one_by_one(first: Iterable[float], second: Iterable[float]) -> None:
    """The bulk observation counts exactly as the library's own does."""
    meter = PrometheusMeter()
    registry = CollectorRegistry()
    metric = metrics.ADMISSION_DURATION
    oracle = Histogram(metric.name, metric.help, registry=registry, buckets=metric.buckets)
    for values in (first, second):
        meter.observe(metric, values)
        for value in values:
            oracle.observe(value)
    ours, theirs = samples(meter.registry), samples(registry)
    assert ours.keys() >= theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value)


def test_processes_add_up_and_the_next_goes_on_where_one_died(tmp_path: Path) -> None:
    """Counters of all processes are one sum; a process that takes a dead one's place adds to what that had counted."""
    queue = frozenset({("queue", "q")})
    for process, count in (("0", 1), ("1", 10), ("0", 100)):
        meter = PrometheusMeter(process, tmp_path)
        meter.add(metrics.DELIVERIES, count, "q")
        meter.observe(metrics.PUBLISH_DURATION, [0.002] * count)
        meter.set(metrics.DELIVERIES_IN_FLIGHT, count, "q")
    PrometheusMeter()  # back to memory
    found = samples(shared_registry(tmp_path))
    assert found["ingest_deliveries_total", queue] == 111
    assert found["ingest_publish_duration_seconds_count", frozenset()] == 111
    in_flight = {
        dict(labels)["process"]: value
        for (name, labels), value in found.items()
        if name.endswith("deliveries_in_flight")
    }
    assert in_flight == {"0": 100, "1": 10}
    assert len(list(tmp_path.iterdir())) == 6  # one a kind and process, whatever has died
