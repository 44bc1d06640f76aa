"""`domain.metrics.Meter` with prometheus_client."""

import os
import platform
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics, values
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ingest import __version__
from ingest.domain import metrics
from ingest.domain.metrics import METRICS, Labels, Metric

PROCESS: Final = "process"
"""The label with the number of the process under its supervisor: `0`, `1`, … The meter adds it."""


class PrometheusMeter:
    """Records in this process, or in files that all processes of a supervisor share.

    Args:
        process: the value of the label `process`.
        directory: the directory of the files; None records in memory. A process that replaces a dead one continues
            its files, so that counters only grow and the number of files does not.
    """

    on = True

    def __init__(self, process: str = "0", directory: Path | None = None) -> None:
        if directory is None:
            values.ValueClass = values.MutexValue
        else:
            # The library reads its own switch, an environment variable, at import, which is too early here.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
            values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]
        disable_created_metrics()  # type: ignore[no-untyped-call]  # halves the number of series; several processes cannot have them anyway
        self.registry = CollectorRegistry()
        self._process = process
        self._metrics = {
            metric.name: _make(metric, self.registry) for metric in METRICS if metric is not metrics.BUILD_INFO
        }
        self._children: dict[tuple[str, Labels], Any] = {}

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        child = self._children.get((metric.name, labels))
        if child is None:
            child = self._child(metric, labels)
        child.inc(amount)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        if PROCESS in metric.labels:
            labels = (self._process, *labels)
        self._child(metric, labels).set(value)

    def observe(self, metric: Metric, values: Iterable[float], *labels: str) -> None:
        child = self._children.get((metric.name, labels))
        if child is None:
            child = self._child(metric, labels)
        child.observe_all(values)

    def _child(self, metric: Metric, labels: Labels) -> Any:
        """The series of these labels, cached: the library's own look-up takes a lock and checks the labels."""
        key = (metric.name, labels)
        child = self._children.get(key)
        if child is None:
            child = self._metrics[metric.name]
            if labels:
                child = child.labels(*labels)
            self._children[key] = child
        return child


class _Histogram(prometheus_client.Histogram):
    """A histogram that records many values at once: one change per bucket instead of two per value."""

    def observe_all(self, values: Iterable[float]) -> None:
        values = sorted(values)
        bounds = self._upper_bounds
        done, end = 0, len(values)
        while done < end:
            index = bisect_left(bounds, values[done])
            # The values are sorted, so those of one bucket are neighbours.
            after = bisect_right(values, bounds[index], done)
            self._buckets[index].inc(after - done)
            done = after
        self._sum.inc(sum(values))


def _make(metric: Metric, registry: CollectorRegistry) -> Any:
    match metric.type:
        case "counter":
            return Counter(metric.name, metric.help, metric.labels, registry=registry)
        case "gauge":
            # One value per process; the values of dead processes are removed, and values are never added.
            return Gauge(metric.name, metric.help, metric.labels, registry=registry, multiprocess_mode="livemax")
        case "histogram":
            return _Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)


def shared_registry(directory: Path) -> CollectorRegistry:
    """Return a registry that adds up what all processes have recorded in `directory`."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    return registry


class Processes(Collector):
    """Build and process information of several processes, with the label `process`.

    Args:
        registry: the registry to add it to.
        pids: returns the process ids by number of the process; called at each collection.
    """

    def __init__(self, registry: CollectorRegistry, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        registry.register(self)

    def collect(self) -> Iterator[Family]:
        build = GaugeMetricFamily(metrics.BUILD_INFO.name, metrics.BUILD_INFO.help, labels=metrics.BUILD_INFO.labels)
        build.add_metric((__version__, platform.python_version()), 1)
        yield build
        families: dict[str, Family] = {}
        for process, pid in sorted(self._pids().items()):
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                family = families.setdefault(metric.name, Family(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.add_sample(sample.name, {**sample.labels, PROCESS: process}, sample.value)
        yield from families.values()
