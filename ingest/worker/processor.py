"""One attempt at a micro-batch of deliveries: classify, admit, publish, settle, ack.

The order is the guarantee: a delivery is acked only after all its messages were confirmed and its entries were settled.
If anything fails in between, the delivery stays unacknowledged, and the next attempt starts from the beginning with the
same ids.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec
import structlog

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain import metrics
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.errors import InvalidSubmission, Reason, StoreUnavailable
from ingest.domain.ledger import Change, Step
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.metrics import NO_METER, Meter, Outcome
from ingest.domain.ports import Consumer, Ledger, Publisher
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.outcomes import CONTENDED, REFUSED, UNAVAILABLE, init_worker_series, record_finished
from ingest.worker.plan import (
    OutboundPlan,
    add_trace,
    copy_of,
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


class Unfinished(msgspec.Struct):
    """The deliveries that an attempt could not finish.

    `contended`: another attempt is working on the same submission, or its rejection cannot be published. `refused`: the
    broker refuses one of its events, because a queue is full or not bound; other submissions are not affected.
    `unavailable`: a dependency did not answer.
    """

    contended: list[Delivery] = msgspec.field(default_factory=list)
    refused: list[Delivery] = msgspec.field(default_factory=list)
    unavailable: list[Delivery] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.contended or self.refused or self.unavailable)

    @property
    def deliveries(self) -> list[Delivery]:
        """All of them."""
        return [*self.contended, *self.refused, *self.unavailable]


class _Failed(msgspec.Struct):
    """Plans that were not published or settled completely; `refused` and `unavailable` as in `Unfinished`."""

    refused: list[OutboundPlan] = msgspec.field(default_factory=list)
    unavailable: list[OutboundPlan] = msgspec.field(default_factory=list)

    @property
    def plans(self) -> list[OutboundPlan]:
        """All of them."""
        return [*self.refused, *self.unavailable]


class _Plans(msgspec.Struct):
    """The plans of one attempt. A delivery that is in neither list needs only an ack.

    `in_progress` are the ids that this attempt has marked as in progress.
    """

    plans: list[OutboundPlan] = msgspec.field(default_factory=list)
    contended: list[Delivery] = msgspec.field(default_factory=list)
    in_progress: set[str] = msgspec.field(default_factory=set)


class DeliveryProcessor:
    """Makes attempts at micro-batches; several attempts may run at once.

    Args:
        ledger: the store.
        publisher: publishes events and dead letters.
        admission: admits direct submissions; it uses the same store.
        classifier: classifies deliveries; it uses the same store.
        meter: records each attempt.
    """

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        admission: Admission,
        classifier: DeliveryClassifier,
        meter: Meter = NO_METER,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._admission = admission
        self._classifier = classifier
        self._meter = meter
        init_worker_series(meter)
        self._in_progress: set[str] = set()

    async def attempt(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> Unfinished:
        """Finish and ack what can be finished; return the rest. An unavailable dependency raises no error."""
        attempt = _Plans()
        try:
            await self._plan(attempt, deliveries)
            failed = await self._publish(attempt.plans)
            published = [plan for plan in attempt.plans if plan not in failed.plans]
            failed.unavailable += await self._settle(published)
            # There is no refund, because the broker may have taken the messages.
            await self._admission.release(
                [plan.decision for plan in failed.plans if plan.decision is not None], refund=False
            )
        except StoreUnavailable as error:
            _log.warning("attempt_failed", error=str(error), submissions=len(deliveries))
            self._meter.add(metrics.WAITING_SUBMISSIONS, len(deliveries), UNAVAILABLE)
            return Unfinished(unavailable=list(deliveries))
        finally:
            self._in_progress -= attempt.in_progress
        unfinished = {id(delivery) for delivery in (*attempt.contended, *[plan.delivery for plan in failed.plans])}
        if self._meter.on:
            finished = [plan for plan in attempt.plans if id(plan.delivery) not in unfinished]
            self._record(len(deliveries), attempt, finished, failed)
        await consumer.ack([delivery for delivery in deliveries if id(delivery) not in unfinished])
        # A rejection that cannot be published only waits: its submission must not be published again in our name.
        rejected = [plan.delivery for plan in failed.refused if plan.outcome is Outcome.REJECTED]
        refused = [plan for plan in failed.refused if plan.outcome is not Outcome.REJECTED]
        return Unfinished([*attempt.contended, *rejected], _redelivered(refused), _redelivered(failed.unavailable))

    async def move_to_end(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Publish deliveries again, at the end of their queue, and ack those; return the ones that were not confirmed.

        Only for deliveries that were classified: they are published in the service's own name.
        """
        outcomes = await self._publisher.publish([copy_of(delivery) for delivery in deliveries])
        confirmed = [outcome is PublishOutcome.CONFIRMED for outcome in outcomes]
        await consumer.ack([delivery for delivery, moved in zip(deliveries, confirmed, strict=True) if moved])
        return [delivery for delivery, moved in zip(deliveries, confirmed, strict=True) if not moved]

    def _record(self, deliveries: int, attempt: _Plans, finished: list[OutboundPlan], failed: _Failed) -> None:
        planned, contended = len(attempt.plans), len(attempt.contended)
        record_finished(self._meter, finished)
        if repeated := deliveries - planned - contended:
            self._meter.add(metrics.REPEATED_DELIVERIES, repeated)
        for cause, waiting in (
            (CONTENDED, contended),
            (REFUSED, len(failed.refused)),
            (UNAVAILABLE, len(failed.unavailable)),
        ):
            if waiting:
                self._meter.add(metrics.WAITING_SUBMISSIONS, waiting, cause)

    async def _plan(self, attempt: _Plans, deliveries: Sequence[Delivery]) -> None:
        """Fill in the plans. Raises StoreUnavailable, after which nothing is published."""
        classified = await self._classifier.classify(deliveries)
        attempt.plans += [plan_rejection(rejection) for rejection in classified.rejected]
        attempt.contended += classified.untrusted  # kept until the setting is corrected
        if classified.admitted:
            await self._plan_admitted(attempt, classified.admitted)
        if classified.direct:
            await self._plan_direct(attempt, classified.direct)
        for plan in attempt.plans:
            if plan.delivery.headers:
                add_trace(plan)

    async def _plan_admitted(self, attempt: _Plans, arrived: Sequence[tuple[Delivery, Admitted]]) -> None:
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
        for delivery, admitted, start, stop in reads:
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

    async def _plan_uncharged(self, attempt: _Plans, arrived: Sequence[tuple[Delivery, Admitted]]) -> None:
        """Admit submissions again whose charge was taken back, and plan them."""
        requests = []
        for delivery, admitted in arrived:
            customer = await self._classifier.customer(admitted.submission.cust_id)
            if customer is None:  # was deleted since; its submission stays accepted
                customer = Customer(cust_id=admitted.submission.cust_id, retention=admitted.retention)
            requests.append((delivery, Request(admitted.submission, customer)))
        decisions = await self._admission.admit([request for _, request in requests])
        for (delivery, _), decision in zip(requests, decisions, strict=True):
            if decision.verdict is Verdict.CONTENDED:
                attempt.contended.append(delivery)
            elif decision.verdict is not Verdict.REPLAY and (plan := _plan_decision(delivery, decision)):
                attempt.plans.append(plan)

    async def _plan_direct(self, attempt: _Plans, arrived: Sequence[tuple[Delivery, Request]]) -> None:
        """Admit direct submissions, as the shim does, and plan them."""
        decisions = await self._admission.admit([request for _, request in arrived])
        for (delivery, _), decision in zip(arrived, decisions, strict=True):
            if decision.verdict is Verdict.CONTENDED:
                attempt.contended.append(delivery)
            elif (plan := _plan_decision(delivery, decision)) is not None:
                attempt.plans.append(plan)

    async def _publish(self, plans: Sequence[OutboundPlan]) -> _Failed:
        """Publish all messages of the plans; return the plans that were not confirmed completely."""
        failed = _Failed()
        await self._publish_messages([(plan, plan.messages) for plan in plans], failed)
        confirmed = [plan for plan in plans if plan not in failed.plans] if failed.plans else plans
        final = [(plan, [plan.final_message]) for plan in confirmed if plan.final_message is not None]
        await self._publish_messages(final, failed)
        return failed

    async def _publish_messages(self, parts: Sequence[tuple[OutboundPlan, list[Message]]], failed: _Failed) -> None:
        messages = [message for _, part in parts for message in part]
        if not messages:
            return
        outcomes = await self._publisher.publish(messages)
        counts = Counter(outcomes)
        if counts[PublishOutcome.CONFIRMED] == len(outcomes):
            return
        _log.warning("publish_unconfirmed", outcomes={str(outcome): count for outcome, count in counts.items()})
        position = 0
        for plan, part in parts:
            part_outcomes = set(outcomes[position : position + len(part)])
            position += len(part)
            if part_outcomes & {PublishOutcome.UNKNOWN, PublishOutcome.UNSENT}:
                failed.unavailable.append(plan)
            elif part_outcomes & {PublishOutcome.NACKED, PublishOutcome.UNROUTABLE}:
                failed.refused.append(plan)

    async def _settle(self, plans: Sequence[OutboundPlan]) -> list[OutboundPlan]:
        """Settle the entries of the plans; return the plans for which that failed."""
        try:
            # Items first: once a batch is accepted, a redelivery of it is only acked.
            if items := [entry for plan in plans for entry in plan.entries[1:]]:
                await self._admission.accepted(items)
            await self._admission.accepted([plan.entries[0] for plan in plans if plan.entries])
        except StoreUnavailable as error:
            unsettled = sum(1 for plan in plans if plan.entries)
            _log.warning("settle_failed", error=str(error), submissions=unsettled)
            return list(plans)
        _log.debug("accepted", ids=[plan.entries[0].id for plan in plans if plan.entries])
        return []


def _redelivered(plans: Sequence[OutboundPlan]) -> list[Delivery]:
    """Mark deliveries whose settle may have succeeded, so that the next attempt takes none for its own duplicate."""
    return [msgspec.structs.replace(plan.delivery, redelivered=True) for plan in plans]


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
