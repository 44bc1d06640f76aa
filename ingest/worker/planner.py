"""Plans a micro-batch: classifies deliveries, admits what the shim has not, and reads what is accepted already."""

from collections.abc import Sequence

import msgspec
import structlog

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.ledger import Change, Step
from ingest.domain.messages import Delivery
from ingest.domain.ports import Ledger
from ingest.waiting import TimeSlices
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.plan import (
    OutboundPlan,
    add_trace,
    ids_to_read,
    is_uncharged,
    plan_admitted,
    plan_direct,
    plan_duplicate,
    plan_rejection,
    released_entries,
)
from ingest.worker.rejections import Rejection

_log = structlog.get_logger(__name__)


class Planned(msgspec.Struct):
    """The plans of one attempt. A delivery that is in none of the lists needs only an ack.

    `in_progress` are the ids that this attempt has marked as in progress.
    """

    plans: list[OutboundPlan] = msgspec.field(default_factory=list)
    contended: list[Delivery] = msgspec.field(default_factory=list)
    untrusted: list[Delivery] = msgspec.field(default_factory=list)
    in_progress: set[str] = msgspec.field(default_factory=set)


class DeliveryPlanner:
    """Makes the plans of attempts; several attempts may run at once.

    Args:
        ledger: the store.
        admission: admits direct submissions; it uses the same store.
        classifier: classifies deliveries; it uses the same store.
    """

    def __init__(self, ledger: Ledger, admission: Admission, classifier: DeliveryClassifier) -> None:
        self._ledger = ledger
        self._admission = admission
        self._classifier = classifier
        self._in_progress: set[str] = set()

    def end(self, attempt: Planned) -> None:
        """Take note that an attempt has ended: copies of its submissions can be planned."""
        self._in_progress -= attempt.in_progress

    async def plan(self, attempt: Planned, deliveries: Sequence[Delivery]) -> None:
        """Fill in the plans; call `end` in any case. Raises StoreUnavailable, after which nothing is published."""
        classified = await self._classifier.classify(deliveries)
        slices = TimeSlices()
        for rejection in classified.rejected:
            await slices.between()
            attempt.plans.append(plan_rejection(rejection))
        attempt.untrusted += classified.untrusted  # kept until the setting is corrected
        if classified.admitted:
            await self._plan_admitted(attempt, classified.admitted)
        direct = classified.direct
        if classified.revoked:
            direct = direct + await self._admitted_before(attempt, classified.revoked)
        if direct:
            await self._plan_direct(attempt, direct)
        for plan in attempt.plans:
            if plan.delivery.headers:
                add_trace(plan)

    async def _plan_admitted(self, attempt: Planned, arrived: Sequence[tuple[Delivery, Admitted]]) -> None:
        """Plan submissions that the shim admitted. The ledger says which of their events were published before."""
        reads = []
        wanted: list[str] = []
        for delivery, admitted in arrived:
            submission_id = admitted.submission.id
            if submission_id in self._in_progress:
                attempt.contended.append(delivery)  # a copy; once the other one is finished, the ledger says so
                continue
            self._in_progress.add(submission_id)
            attempt.in_progress.add(submission_id)
            ids = ids_to_read(admitted.submission)
            reads.append((delivery, admitted, len(wanted), len(wanted) + len(ids)))
            wanted += ids
        entries = await self._ledger.read(wanted)
        uncharged = []
        slices = TimeSlices()
        for delivery, admitted, start, stop in reads:
            await slices.between()
            stored = entries[start:stop]
            if is_uncharged(admitted, stored):
                uncharged.append((delivery, admitted))
                continue
            if released := released_entries(admitted, stored):
                # Make them durable first: then no other attempt can take them over, and no refund can be made.
                queued = await self._ledger.apply([Change(Step.QUEUE, entry) for entry in released])
                if None in queued:
                    attempt.contended.append(delivery)
                    continue
                by_id = {entry.id: entry for entry in queued if entry is not None}
                stored = [by_id.get(entry.id, entry) if entry is not None else None for entry in stored]
            if plan := plan_admitted(delivery, admitted, stored):
                attempt.plans.append(plan)
        if uncharged:
            await self._plan_uncharged(attempt, uncharged)

    async def _plan_uncharged(self, attempt: Planned, arrived: Sequence[tuple[Delivery, Admitted]]) -> None:
        """Admit submissions again whose charge was taken back, and plan them."""
        requests = []
        for delivery, admitted in arrived:
            customer = await self._classifier.customer(admitted.submission.cust_id)
            if customer is None:  # was deleted since; its submission stays accepted
                customer = Customer(cust_id=admitted.submission.cust_id, retention=admitted.retention)
            request = Request(admitted.submission, customer, created_at=admitted.created_at)
            requests.append((delivery, request))
        decisions = await self._admission.admit([request for _, request in requests])
        for (delivery, _), decision in zip(requests, decisions, strict=True):
            if decision.verdict in (Verdict.CONTENDED, Verdict.REPLAY):
                # If another attempt has just made it durable, the next one reads whether its events are published.
                attempt.contended.append(delivery)
            elif plan := _plan_decision(delivery, decision):
                attempt.plans.append(plan)

    async def _admitted_before(
        self, attempt: Planned, revoked: Sequence[tuple[Request, Rejection]]
    ) -> list[tuple[Delivery, Request]]:
        """Return the submissions that were admitted before their webhook or customer was removed; reject the others.

        Some of their events may have been published, so they must not be rejected now.
        """
        admitted = []
        entries = await self._ledger.read([request.submission.id for request, _ in revoked])
        for (request, rejected), entry in zip(revoked, entries, strict=True):
            same_body = entry is not None and entry.fingerprint == request.submission.fingerprint
            if entry is not None and same_body and (entry.is_durable or entry.origin == request.origin):
                admitted.append((rejected.delivery, request))
            else:
                attempt.plans.append(plan_rejection(rejected))
        return admitted

    async def _plan_direct(self, attempt: Planned, arrived: Sequence[tuple[Delivery, Request]]) -> None:
        """Admit direct submissions, as the shim does, and plan them."""
        decisions = await self._admission.admit([request for _, request in arrived])
        slices = TimeSlices()
        for (delivery, _), decision in zip(arrived, decisions, strict=True):
            await slices.between()
            if decision.verdict is Verdict.CONTENDED:
                attempt.contended.append(delivery)
            elif (plan := _plan_decision(delivery, decision)) is not None:
                attempt.plans.append(plan)


def _plan_decision(delivery: Delivery, decision: Decision) -> OutboundPlan | None:
    """Return the plan for a direct submission that is not contended; None if it needs only an ack."""
    request = decision.request
    cust_id = request.customer.cust_id
    if decision.verdict is Verdict.ADMITTED:
        return plan_direct(delivery, decision)
    if decision.verdict is Verdict.QUOTA_EXHAUSTED:
        message = f"customer {cust_id} has used up its quota of {request.customer.monthly_quota} tasks for this month"
        return plan_rejection(Rejection(delivery, InvalidSubmission(Reason.QUOTA_EXHAUSTED, message), cust_id))
    if delivery.redelivered and decision.entry.origin == request.origin and not decision.mismatch:
        return None  # this same message was accepted, and only its ack was lost
    if decision.mismatch:
        _log.warning("payload_mismatch", cust_id=cust_id, id=decision.entry.id)
        if request.customer.strict:
            message = f"{decision.entry.id} was submitted under this key with another body"
            return plan_rejection(Rejection(delivery, InvalidSubmission(Reason.KEY_CONFLICT, message), cust_id))
    return plan_duplicate(delivery, decision)
