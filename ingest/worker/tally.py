"""What a finished cohort adds to the metrics: one pass over its works, one call a series."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from ingest.domain import metrics
from ingest.domain.metrics import Meter
from ingest.domain.topology import INGEST_BATCHES
from ingest.worker.work import Work

_OLDEST: Final = 366 * 86_400
"""Seconds; a timestamp property further back is not taken for one."""


def finished(meter: Meter, works: Sequence[Work]) -> None:
    """Works that are settled and about to be acknowledged."""
    now = time.time()
    ages: dict[tuple[str, str], list[float]] = defaultdict(list)
    outcomes: Counter[tuple[str, str, str]] = Counter()
    tasks: Counter[str] = Counter()
    mismatches = 0
    for each in works:
        kind = "batch" if each.delivery.queue == INGEST_BATCHES else "task"
        if each.entries and each.decision is None:
            door = "http"
            submitted = each.entries[0].created_at / 1000
        else:
            door = "amqp"
            outcomes[(kind, each.outcome, each.reason)] += 1
            mismatches += each.mismatch
            if not each.entries:
                continue
            submitted = _sent(each, now)
        ages[(door, kind)].append(max(0.0, now - submitted))
        tasks[door] += len(each.first)
    for (door, kind), values in ages.items():
        meter.observe(metrics.ACCEPTANCE_AGE, values, door, kind)
    for door, count in tasks.items():
        meter.add(metrics.ACCEPTED_TASKS, count, door)
    for (kind, outcome, reason), count in outcomes.items():
        meter.add(metrics.SUBMISSIONS, count, "amqp", kind, outcome, reason)
    if mismatches:
        meter.add(metrics.PAYLOAD_MISMATCHES, mismatches, "amqp")


def _sent(work: Work, now: float) -> float:
    """When a direct submission was sent, as its producer says, else when it was admitted. Unix seconds."""
    timestamp = work.delivery.timestamp
    if timestamp is not None and now - _OLDEST < timestamp <= now + 1:
        return float(timestamp)
    return work.entries[0].created_at / 1000
