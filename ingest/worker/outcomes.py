"""What a finished cohort adds to the metrics: one pass over its works, one call a series."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from ingest.domain import metrics
from ingest.domain.identity import SubmissionKind
from ingest.domain.metrics import Meter
from ingest.domain.topology import INGEST_BATCHES
from ingest.worker.plan import OutboundPlan

_OLDEST: Final = 366 * 86_400
"""Seconds; a timestamp property further back is not taken for one."""


def begin(meter: Meter) -> None:
    """Begin every series of a worker at 0."""
    metrics.init_series(meter, "amqp")
    for door in ("http", "amqp"):
        meter.add(metrics.ACCEPTED_TASKS, 0, door)
    for cause in ("busy", "unavailable"):
        meter.add(metrics.WAITING_SUBMISSIONS, 0, cause)


def finished(meter: Meter, works: Sequence[OutboundPlan]) -> None:
    """Works of one queue that are settled and about to be acknowledged."""
    if not works:
        return
    kind = SubmissionKind.BATCH if works[0].delivery.queue == INGEST_BATCHES else SubmissionKind.TASK
    now = time.time()
    ages: dict[str, list[float]] = {"http": [], "amqp": []}
    http, amqp = ages["http"].append, ages["amqp"].append
    tasks = {"http": 0, "amqp": 0}
    others = []
    for each in works:
        if each.decision is not None:
            amqp(now - _sent(each, now))
            tasks["amqp"] += len(each.first)
        elif each.entries:
            http(now - each.entries[0].created_at / 1000)
            tasks["http"] += len(each.first)
        else:
            others.append((each.outcome, each.reason, each.mismatch))
    for door, values in ages.items():
        if values:
            if min(values) < 0:  # the clocks of two hosts
                values = [max(0.0, value) for value in values]
            meter.observe(metrics.ACCEPTANCE_AGE, values, door, kind)
            meter.add(metrics.ACCEPTED_TASKS, tasks[door], door)
    if ages["amqp"]:
        meter.add(metrics.SUBMISSIONS, len(ages["amqp"]), "amqp", kind, "accepted", "")
    if others:
        _count(meter, kind, others)


def _count(meter: Meter, kind: str, others: list[tuple[str, str, bool]]) -> None:
    """Direct submissions that were not accepted: outcome, reason, whether the body was another than the original."""
    for (outcome, reason), count in Counter([(outcome, reason) for outcome, reason, _ in others]).items():
        meter.add(metrics.SUBMISSIONS, count, "amqp", kind, outcome, reason)
    if mismatches := sum([mismatch for _, _, mismatch in others]):
        meter.add(metrics.PAYLOAD_MISMATCHES, mismatches, "amqp")


def _sent(work: OutboundPlan, now: float) -> float:
    """When a direct submission was sent, as its producer says, else when it was admitted. Unix seconds."""
    timestamp = work.delivery.timestamp
    if timestamp is not None and now - _OLDEST < timestamp <= now + 1:
        return float(timestamp)
    return work.entries[0].created_at / 1000
