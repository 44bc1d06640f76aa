"""What a finished micro-batch adds to the metrics: one pass over its plans, one call per series."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from ingest.domain import metrics
from ingest.domain.addresses import is_batch
from ingest.domain.identity import SubmissionKind
from ingest.domain.metrics import EntryPoint, Meter, Outcome
from ingest.worker.plan import OutboundPlan

_OLDEST: Final = 366 * 86_400
"""A timestamp property that is more than this many seconds old is ignored."""

CONTENDED: Final = "busy"
UNTRUSTED: Final = "untrusted"
REFUSED: Final = "refused"
UNAVAILABLE: Final = "unavailable"
"""Values of the label `cause` of `ingest_waiting_submissions_total`."""


def init_worker_series(meter: Meter) -> None:
    """Create every series of a worker with the value 0."""
    metrics.init_series(meter, EntryPoint.AMQP)
    for entry_point in EntryPoint:
        meter.add(metrics.ACCEPTED_TASKS, 0, entry_point)
    for cause in (CONTENDED, UNTRUSTED, REFUSED, UNAVAILABLE):
        meter.add(metrics.WAITING_SUBMISSIONS, 0, cause)


def record_finished(meter: Meter, plans: Sequence[OutboundPlan]) -> None:
    """Record plans that are settled and will be acked now."""
    batches = [plan for plan in plans if is_batch(plan.delivery.routing_key)]
    tasks = [plan for plan in plans if not is_batch(plan.delivery.routing_key)] if batches else plans
    for kind, own in ((SubmissionKind.TASK, tasks), (SubmissionKind.BATCH, batches)):
        if own:
            _record_kind(meter, kind, own)


def _record_kind(meter: Meter, kind: SubmissionKind, plans: Sequence[OutboundPlan]) -> None:
    now = time.time()
    http_ages: list[float] = []
    amqp_ages: list[float] = []
    http_tasks = amqp_tasks = 0
    not_accepted = []
    for plan in plans:
        if plan.decision is not None:
            amqp_ages.append(now - _submitted_at(plan, now))
            amqp_tasks += plan.accepted_tasks
        elif plan.entries:
            http_ages.append(now - plan.entries[0].created_at / 1000)
            http_tasks += plan.accepted_tasks
        if plan.outcome is not Outcome.ACCEPTED:
            not_accepted.append((plan.outcome, plan.reason, plan.mismatch))
    _record_accepted(meter, EntryPoint.HTTP, kind, http_ages, http_tasks)
    _record_accepted(meter, EntryPoint.AMQP, kind, amqp_ages, amqp_tasks)
    if amqp_ages:
        meter.add(metrics.SUBMISSIONS, len(amqp_ages), EntryPoint.AMQP, kind, Outcome.ACCEPTED, "")
    if not_accepted:
        _record_not_accepted(meter, kind, not_accepted)


def _record_accepted(
    meter: Meter, entry_point: EntryPoint, kind: SubmissionKind, ages: list[float], tasks: int
) -> None:
    if not ages:
        return
    if min(ages) < 0:  # the clocks of two hosts differ
        ages = [max(0.0, age) for age in ages]
    meter.observe(metrics.ACCEPTANCE_AGE, ages, entry_point, kind)
    meter.add(metrics.ACCEPTED_TASKS, tasks, entry_point)


def _record_not_accepted(meter: Meter, kind: SubmissionKind, submissions: Sequence[tuple[Outcome, str, bool]]) -> None:
    """Record direct submissions that were rejected or duplicates: outcome, reason, and whether the body differed."""
    counts = Counter([(outcome, reason) for outcome, reason, _ in submissions])
    for (outcome, reason), count in counts.items():
        meter.add(metrics.SUBMISSIONS, count, EntryPoint.AMQP, kind, outcome, reason)
    if mismatches := sum([mismatch for _, _, mismatch in submissions]):
        meter.add(metrics.PAYLOAD_MISMATCHES, mismatches, EntryPoint.AMQP)


def _submitted_at(plan: OutboundPlan, now: float) -> float:
    """When a direct submission was sent, in Unix seconds: its timestamp property, otherwise its admission."""
    timestamp = plan.delivery.timestamp
    if timestamp is not None and now - _OLDEST < timestamp <= now + 1:
        return float(timestamp)
    return plan.entries[0].created_at / 1000
