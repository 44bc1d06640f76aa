"""Plans a micro-batch: classifies deliveries, admits what the shim has not, and reads what is accepted already."""

from collections.abc import Awaitable, Sequence
from itertools import islice

import msgspec
import structlog

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.errors import InvalidSubmission, Reason, StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Change, Entry, Step
from ingest.domain.messages import Delivery
from ingest.domain.ports import Ledger
from ingest.waiting import TimeSlices
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.customers import CustomerLookups
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


_Arrived = tuple[Delivery, Admitted]
_Released = tuple[Delivery, Admitted, list[Entry | None], list[Entry]]
"""With what the ledger has stored of the submission, and which of that is released."""


class Planned(msgspec.Struct):
    """The plans of one attempt. A delivery that is in none of the lists needs only an ack.

    `undecided` are deliveries whose entries or charges the store could not decide; `failure` is its error if a whole
    call failed. `in_progress` are the ids that this attempt has marked as in progress.
    """

    plans: list[OutboundPlan] = msgspec.field(default_factory=list)
    contended: list[Delivery] = msgspec.field(default_factory=list)
    untrusted: list[Delivery] = msgspec.field(default_factory=list)
    undecided: list[Delivery] = msgspec.field(default_factory=list)
    failure: StoreUnavailable | None = None
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
        attempt.undecided += classified.undecided
        attempt.failure = classified.failure
        if classified.admitted:
            await self._plan_admitted(attempt, classified.admitted)
        if classified.revoked:
            part = [(rejected.delivery, request) for request, rejected in classified.revoked]
            await self._plan_part(attempt, part, self._plan_revoked(attempt, classified.revoked))
        if classified.direct:
            await self._plan_part(attempt, classified.direct, self._plan_direct(attempt, classified.direct))
        if attempt.failure is not None and len(attempt.undecided) == len(deliveries):
            raise attempt.failure
        for plan in attempt.plans:
            if plan.delivery.headers:
                add_trace(plan)

    async def _plan_part(
        self, attempt: Planned, part: Sequence[tuple[Delivery, object]], planning: Awaitable[None]
    ) -> None:
        """Plan some of the deliveries. If the store fails, they are undecided, and the others are not affected."""
        try:
            await planning
        except StoreUnavailable as error:
            attempt.failure = error
            attempt.undecided += [delivery for delivery, _ in part]

    async def _plan_admitted(self, attempt: Planned, arrived: Sequence[_Arrived]) -> None:
        """Plan submissions that the shim admitted; leave copies of those that are in progress."""
        new = []
        for delivery, admitted in arrived:
            submission_id = admitted.submission.id
            if submission_id in self._in_progress:
                attempt.contended.append(delivery)  # a copy; once the other one is finished, the ledger says so
                continue
            self._in_progress.add(submission_id)
            attempt.in_progress.add(submission_id)
            new.append((delivery, admitted))
        await self._plan_part(attempt, new, self._plan_new(attempt, new))

    async def _plan_new(self, attempt: Planned, arrived: Sequence[_Arrived]) -> None:
        """Read the ledger, which says which events of the submissions were published before, and plan them."""
        ids = [ids_to_read(admitted.submission) for _, admitted in arrived]
        entries = iter(await self._ledger.read([entry_id for own in ids for entry_id in own]))
        uncharged: list[_Arrived] = []
        released: list[_Released] = []
        slices = TimeSlices()
        for (delivery, admitted), own in zip(arrived, ids, strict=True):
            await slices.between()
            results = list(islice(entries, len(own)))
            stored = [entry or None for entry in results]
            if UNDECIDED in results:
                attempt.undecided.append(delivery)
            elif is_uncharged(admitted, stored):
                uncharged.append((delivery, admitted))
            elif own_released := released_entries(admitted, stored):
                released.append((delivery, admitted, stored, own_released))
            elif plan := plan_admitted(delivery, admitted, stored):
                attempt.plans.append(plan)
        if uncharged:
            await self._plan_uncharged(attempt, uncharged)
        if released:
            part = [(delivery, admitted) for delivery, admitted, _, _ in released]
            await self._plan_part(attempt, part, self._plan_released(attempt, released))

    async def _plan_released(self, attempt: Planned, arrived: Sequence[_Released]) -> None:
        """Plan submissions that other attempts could take over, or refund.

        They become durable first: then no other attempt can take them over, and no refund can be made.
        """
        changes = [Change(Step.QUEUE, entry) for _, _, _, released in arrived for entry in released]
        results = iter(await self._ledger.apply(changes))
        for delivery, admitted, stored, released in arrived:
            queued = list(islice(results, len(released)))
            if UNDECIDED in queued:
                attempt.undecided.append(delivery)
                continue
            if None in queued:
                attempt.contended.append(delivery)
                continue
            if plan := plan_admitted(delivery, admitted, stored):
                attempt.plans.append(plan)

    async def _plan_uncharged(self, attempt: Planned, arrived: Sequence[_Arrived]) -> None:
        """Admit submissions again whose charge was taken back, and plan them."""
        requests = []
        lookups = CustomerLookups(self._classifier.customers)
        for delivery, admitted in arrived:
            customer = await lookups.customer(admitted.submission.cust_id)
            if customer is UNDECIDED:
                attempt.undecided.append(delivery)
                continue
            if customer is None:  # was deleted since; its submission stays accepted
                customer = Customer(cust_id=admitted.submission.cust_id, retention=admitted.retention)
            request = Request(admitted.submission, customer, created_at=admitted.created_at)
            requests.append((delivery, request))
        attempt.failure = lookups.failure or attempt.failure
        if requests:
            await self._plan_part(attempt, requests, self._plan_again(attempt, requests))

    async def _plan_again(self, attempt: Planned, requests: Sequence[tuple[Delivery, Request]]) -> None:
        decisions = await self._admission.admit([request for _, request in requests])
        for (delivery, _), decision in zip(requests, decisions, strict=True):
            if decision.verdict is Verdict.REPLAY:
                # Another attempt has just made it durable. The next one reads whether its events are published.
                attempt.contended.append(delivery)
            else:
                _add_decision(attempt, delivery, decision)

    async def _plan_revoked(self, attempt: Planned, revoked: Sequence[tuple[Request, Rejection]]) -> None:
        """Plan submissions that were admitted before their webhook or customer was removed; reject the others.

        Some of their events may have been published, so they must not be rejected now. The same holds for a customer
        that was disabled, but its replays are rejected.
        """
        admitted = []
        entries = await self._ledger.read([request.submission.id for request, _ in revoked])
        for (request, rejected), entry in zip(revoked, entries, strict=True):
            if entry is UNDECIDED:
                attempt.undecided.append(rejected.delivery)
            elif (
                entry
                and entry.fingerprint == request.submission.fingerprint
                and (entry.is_durable or entry.origin == request.origin)
                and not _is_refused_replay(rejected, entry)
            ):
                admitted.append((rejected.delivery, request))
            else:
                attempt.plans.append(plan_rejection(rejected))
        if admitted:
            await self._plan_part(attempt, admitted, self._plan_direct(attempt, admitted))

    async def _plan_direct(self, attempt: Planned, arrived: Sequence[tuple[Delivery, Request]]) -> None:
        """Admit direct submissions, as the shim does, and plan them."""
        decisions = await self._admission.admit([request for _, request in arrived])
        repeats = []
        slices = TimeSlices()
        for (delivery, _), decision in zip(arrived, decisions, strict=True):
            await slices.between()
            if decision.verdict is Verdict.REPLAY and decision.must_publish:
                repeats.append((delivery, decision))
            else:
                _add_decision(attempt, delivery, decision)
        if repeats:
            await self._plan_repeats(attempt, repeats)

    async def _plan_repeats(self, attempt: Planned, repeats: Sequence[tuple[Delivery, Decision]]) -> None:
        """Plan repeats of submissions whose messages are probably lost: accept them, and tell the producer.

        If that fails, the next attempt finds the lease of this one, and waits until it has ended.
        """
        before = len(attempt.plans)
        await self._plan_admitted(attempt, [(delivery, decision.admitted) for delivery, decision in repeats])
        planned = {id(plan.delivery): plan for plan in attempt.plans[before:]}
        waiting = {id(delivery) for delivery in (*attempt.contended, *attempt.undecided)}
        for delivery, decision in repeats:
            _log.warning("submission_published_again", id=decision.entry.id)
            duplicate = plan_duplicate(delivery, decision)
            if (plan := planned.get(id(delivery))) is not None:
                plan.messages += duplicate.messages
                plan.outcome = duplicate.outcome
            elif id(delivery) not in waiting:
                attempt.plans.append(duplicate)


def _is_refused_replay(rejected: Rejection, entry: Entry) -> bool:
    """Return whether a disabled customer repeats a submission. A redelivery may be the accepted one, not yet acked."""
    disabled = rejected.error.reason is Reason.CUSTOMER_DISABLED
    return disabled and entry.is_durable and not rejected.delivery.redelivered


def _add_decision(attempt: Planned, delivery: Delivery, decision: Decision) -> None:
    """Plan a submission that was decided on, or let it wait."""
    if decision.verdict is Verdict.CONTENDED or (decision.is_being_published and not decision.mismatch):
        attempt.contended.append(delivery)
    elif decision.verdict is Verdict.UNDECIDED:
        attempt.undecided.append(delivery)
    elif (plan := _plan_decision(delivery, decision)) is not None:
        attempt.plans.append(plan)


def _plan_decision(delivery: Delivery, decision: Decision) -> OutboundPlan | None:
    """Return the plan for a direct submission that is not contended; None if it needs only an ack."""
    request = decision.request
    cust_id, key = request.customer.cust_id, request.submission.key
    if decision.verdict is Verdict.ADMITTED:
        return plan_direct(delivery, decision)
    if decision.verdict is Verdict.QUOTA_EXHAUSTED:
        message = f"customer {cust_id} has used up its quota of {request.customer.monthly_quota} tasks for this month"
        return plan_rejection(Rejection(delivery, InvalidSubmission(Reason.QUOTA_EXHAUSTED, message), cust_id, key))
    if delivery.redelivered and decision.entry.origin == request.origin and not decision.mismatch:
        return None  # this same message was accepted, and only its ack was lost
    if decision.mismatch:
        _log.warning("payload_mismatch", cust_id=cust_id, id=decision.entry.id)
        if request.customer.strict:
            message = f"{decision.entry.id} was submitted under this key with another body"
            return plan_rejection(Rejection(delivery, InvalidSubmission(Reason.KEY_CONFLICT, message), cust_id, key))
    return plan_duplicate(delivery, decision)
