"""One attempt at a list of deliveries: sort, admit, emit, settle, ack. What it cannot finish it hands back.

The order is the promise: a delivery is acknowledged only after every output of it was confirmed and its ledger
entries are settled. Whatever goes wrong in between, it stays unacknowledged and is tried again from the start; the
ids of its events are the same each time.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec
import structlog

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain import metrics
from ingest.domain.admitted import Admitted
from ingest.domain.errors import InvalidSubmission, Reason, StoreUnavailable
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.metrics import NO_METER, Meter
from ingest.domain.ports import Consumer, Ledger, Publisher
from ingest.worker import outcomes
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.plan import OutboundPlan, direct, duplicate, ids_to_read, pass_trace_on, refused, resumed
from ingest.worker.rejections import Refusal

_log = structlog.get_logger(__name__)


class Unfinished(msgspec.Struct):
    """What an attempt could not finish. `busy`: somebody else is at it; `failed`: a dependency is away."""

    busy: list[Delivery] = msgspec.field(default_factory=list)
    failed: list[Delivery] = msgspec.field(default_factory=list)


class _AttemptPlan(msgspec.Struct):
    """What is to be done about a cohort. What stands in none of the lists is finished. `ids`: entered as under way."""

    works: list[OutboundPlan] = msgspec.field(default_factory=list)
    busy: list[Delivery] = msgspec.field(default_factory=list)
    ids: set[str] = msgspec.field(default_factory=set)


class DeliveryProcessor:
    """Attempts at cohorts of deliveries; several may run at once.

    Args:
        ledger: the store.
        publisher: for all outputs.
        admission: on the same store.
        intake: on the same store.
        meter: told once an attempt.
    """

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        admission: Admission,
        intake: DeliveryClassifier,
        meter: Meter = NO_METER,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._admission = admission
        self._intake = intake
        self._meter = meter
        outcomes.begin(meter)
        self._under_way: set[str] = set()

    async def attempt(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> Unfinished:
        """Finish and acknowledge what can be finished. Never raises for a dependency that is away."""
        plan = _AttemptPlan()
        try:
            await self._make(plan, deliveries)
            failed = await self._emit(plan.works)
            failed += await self._settle([each for each in plan.works if each not in failed])
            await self._give_back(failed)
        except StoreUnavailable as error:
            _log.warning("store unavailable, submissions wait", error=str(error), submissions=len(deliveries))
            self._meter.add(metrics.WAITING_SUBMISSIONS, len(deliveries), "unavailable")
            return Unfinished(failed=list(deliveries))
        finally:
            self._under_way -= plan.ids
        unfinished = {id(delivery) for delivery in (*plan.busy, *[each.delivery for each in failed])}
        if self._meter.on:
            finished = [each for each in plan.works if id(each.delivery) not in unfinished]
            self._count(len(deliveries), plan, finished)
        await consumer.ack([delivery for delivery in deliveries if id(delivery) not in unfinished])
        # They may have been settled all the same: then the next attempt must not take them for copies of themselves.
        return Unfinished(plan.busy, [msgspec.structs.replace(each.delivery, redelivered=True) for each in failed])

    def _count(self, deliveries: int, plan: _AttemptPlan, finished: list[OutboundPlan]) -> None:
        works, busy = len(plan.works), len(plan.busy)
        outcomes.finished(self._meter, finished)
        if dropped := deliveries - works - busy:
            self._meter.add(metrics.REPEATED_DELIVERIES, dropped)
        for cause, waiting in (("busy", busy), ("unavailable", works - len(finished))):
            if waiting:
                self._meter.add(metrics.WAITING_SUBMISSIONS, waiting, cause)

    async def _make(self, plan: _AttemptPlan, deliveries: Sequence[Delivery]) -> None:
        """Nothing is claimed or sent where this raises StoreUnavailable."""
        arrived = await self._intake.sort(deliveries)
        plan.works += [refused(refusal) for refusal in arrived.refused]
        if arrived.admitted:
            await self._resume(plan, arrived.admitted)
        if arrived.direct:
            await self._admit(plan, arrived.direct)
        for each in plan.works:
            if each.delivery.headers:
                pass_trace_on(each)

    async def _resume(self, plan: _AttemptPlan, arrived: Sequence[tuple[Delivery, Admitted]]) -> None:
        """What the shim has admitted and no worker has finished."""
        reads = []
        wanted: list[str] = []
        for delivery, admitted in arrived:
            id_ = admitted.submission.id
            if id_ in self._under_way:
                plan.busy.append(delivery)  # a copy: once the other is through, the ledger tells
                continue
            self._under_way.add(id_)
            plan.ids.add(id_)
            ids = ids_to_read(admitted.submission)
            reads.append((delivery, admitted, len(wanted), len(wanted) + len(ids)))
            wanted += ids
        found = await self._ledger.read(wanted)
        for delivery, admitted, start, stop in reads:
            todo = resumed(delivery, admitted, found[start:stop])
            if todo is not None:
                plan.works.append(todo)

    async def _admit(self, plan: _AttemptPlan, arrived: Sequence[tuple[Delivery, Request]]) -> None:
        """Direct submissions: admit them as the shim would."""
        decisions = await self._admission.admit([request for _, request in arrived])
        for (delivery, _), decision in zip(arrived, decisions, strict=True):
            if decision.verdict is Verdict.BUSY:
                plan.busy.append(delivery)
            elif (todo := _todo(delivery, decision)) is not None:
                plan.works.append(todo)

    async def _emit(self, works: Sequence[OutboundPlan]) -> list[OutboundPlan]:
        """Publish what the works owe; return those not confirmed in full."""
        failed = await self._publish([(each, each.first) for each in works])
        return failed + await self._publish([(each, each.last) for each in works if each.last and each not in failed])

    async def _publish(self, owed: Sequence[tuple[OutboundPlan, list[Message]]]) -> list[OutboundPlan]:
        messages = [message for _, part in owed for message in part]
        if not messages:
            return []
        outcomes = await self._publisher.publish(messages)
        counts = Counter(outcomes)
        if counts[PublishOutcome.CONFIRMED] == len(outcomes):
            return []
        _log.warning("events not confirmed, submissions wait", outcomes={str(o): n for o, n in counts.items()})
        failed = []
        position = 0
        for each, part in owed:
            mine = outcomes[position : position + len(part)]
            position += len(part)
            if any(outcome is not PublishOutcome.CONFIRMED for outcome in mine):
                failed.append(each)
        return failed

    async def _settle(self, works: Sequence[OutboundPlan]) -> list[OutboundPlan]:
        """Enter the works as accepted; return those for which that did not go."""
        try:
            await self._admission.accepted([entry for each in works for entry in each.entries])
        except StoreUnavailable as error:
            _log.warning("store unavailable, submissions wait", error=str(error), submissions=len(works))
            return list(works)
        _log.debug("accepted", ids=[each.entries[0].id for each in works if each.entries])
        return []

    async def _give_back(self, works: Sequence[OutboundPlan]) -> None:
        """Let go of claims, so that the next attempt finds them free; what was paid stays paid."""
        decisions = [each.decision for each in works if each.decision is not None]
        if decisions:
            try:
                await self._admission.release(decisions, refund=False)
            except StoreUnavailable as error:
                _log.warning(
                    "claims not given back yet, it is done before anything else is admitted",
                    error=str(error),
                    claims=len(decisions),
                )


def _todo(delivery: Delivery, decision: Decision) -> OutboundPlan | None:
    request = decision.request
    cust_id = request.customer.cust_id
    if decision.verdict is Verdict.ADMITTED:
        return direct(delivery, decision)
    if decision.verdict is Verdict.QUOTA_EXHAUSTED:
        why = f"customer {cust_id} has used up its quota of {request.customer.monthly_quota} tasks for this month"
        return refused(Refusal(delivery, InvalidSubmission(Reason.QUOTA_EXHAUSTED, why), cust_id))
    if delivery.redelivered and decision.entry.origin == request.origin:
        return None  # this very message was accepted, only its ack was lost
    if decision.mismatch:
        _log.warning("key used again with another body", cust_id=cust_id, id=decision.entry.id)
        if request.customer.strict:
            why = f"{decision.entry.id} was submitted under this key with another body"
            return refused(Refusal(delivery, InvalidSubmission(Reason.KEY_CONFLICT, why), cust_id))
    return duplicate(delivery, decision)
