"""One attempt at a micro-batch of deliveries: classify, admit, publish, settle, ack.

The order is the guarantee: a delivery is acked only after all its messages were confirmed and its entries were settled.
If anything fails in between, the delivery stays unacknowledged, and the next attempt starts from the beginning with the
same ids.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final

import msgspec
import structlog

from ingest.admission import Admission
from ingest.domain import metrics
from ingest.domain.dead_letters import submit_again
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Doubt, Entry
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.metrics import NO_METER, Meter, Outcome
from ingest.domain.ports import Acknowledger, Ledger, Publisher
from ingest.worker.classify import DeliveryClassifier
from ingest.worker.outcomes import CONTENDED, REFUSED, UNAVAILABLE, UNTRUSTED, init_worker_series, record_finished
from ingest.worker.plan import OutboundPlan
from ingest.worker.planner import DeliveryPlanner, Planned

_UNAVAILABLE_OUTCOMES: Final = (PublishOutcome.UNKNOWN, PublishOutcome.UNSENT)

_log = structlog.get_logger(__name__)


class Unfinished(msgspec.Struct):
    """The deliveries that an attempt could not finish.

    `contended`: another attempt is working on the same submission. `untrusted`: it was admitted, it seems, by a user
    whom the worker does not trust. `refused`: one of its events cannot be published, because a queue is full or not
    bound, or because it is too large; other submissions are not affected. `rejected`: the same for its dead letter.
    `undecided`: the store has trouble with one of its records; other submissions are not affected. `unavailable`: a
    dependency did not answer.
    """

    contended: list[Delivery] = msgspec.field(default_factory=list)
    untrusted: list[Delivery] = msgspec.field(default_factory=list)
    refused: list[Delivery] = msgspec.field(default_factory=list)
    rejected: list[Delivery] = msgspec.field(default_factory=list)
    undecided: list[Delivery] = msgspec.field(default_factory=list)
    unavailable: list[Delivery] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.deliveries)

    @property
    def deliveries(self) -> list[Delivery]:
        """All of them."""
        return [*self.contended, *self.untrusted, *self.refused, *self.rejected, *self.undecided, *self.unavailable]

    def split(self, first: Callable[[Delivery], bool]) -> "tuple[Unfinished, Unfinished]":
        """Return those for which `first` returns True, and the others."""
        parts = Unfinished(), Unfinished()
        for name in self.__struct_fields__:
            for delivery in getattr(self, name):
                getattr(parts[0 if first(delivery) else 1], name).append(delivery)
        return parts

    def add(self, other: "Unfinished") -> None:
        """Add the deliveries of another attempt."""
        self.contended += other.contended
        self.untrusted += other.untrusted
        self.refused += other.refused
        self.rejected += other.rejected
        self.undecided += other.undecided
        self.unavailable += other.unavailable


class _Failed(msgspec.Struct):
    """Plans that were not published or settled completely; the lists as in `Unfinished`."""

    refused: list[OutboundPlan] = msgspec.field(default_factory=list)
    undecided: list[OutboundPlan] = msgspec.field(default_factory=list)
    unavailable: list[OutboundPlan] = msgspec.field(default_factory=list)

    @property
    def plans(self) -> list[OutboundPlan]:
        """All of them."""
        return [*self.refused, *self.undecided, *self.unavailable]


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
        self._classifier = classifier
        self._planner = DeliveryPlanner(ledger, admission, classifier)
        self._publisher = publisher
        self._admission = admission
        self._meter = meter
        init_worker_series(meter)

    async def attempt(self, consumer: Acknowledger, deliveries: Sequence[Delivery]) -> Unfinished:
        """Finish and ack what can be finished; return the rest. An unavailable dependency raises no error."""
        attempt = Planned()
        try:
            await self._planner.plan(attempt, deliveries)
            failed = await self._publish(attempt.plans)
            await self._settle(_without(attempt.plans, failed.plans), failed)
            # There is no refund, because the broker may have taken the messages.
            unconfirmed = [plan.decision for plan in failed.plans if plan.decision is not None]
            await self._admission.release(unconfirmed, refund=False, doubt=Doubt.EVENTS)
        except StoreUnavailable as error:
            _log.warning("attempt_failed", error=str(error), submissions=len(deliveries))
            self._meter.add(metrics.WAITING_SUBMISSIONS, len(deliveries), UNAVAILABLE)
            return Unfinished(unavailable=list(deliveries))
        finally:
            self._planner.end(attempt)
        unplanned = [*attempt.contended, *attempt.untrusted, *attempt.undecided]
        unfinished = {id(delivery) for delivery in (*unplanned, *[plan.delivery for plan in failed.plans])}
        if self._meter.on:
            finished = [plan for plan in attempt.plans if id(plan.delivery) not in unfinished]
            self._record(len(deliveries), attempt, finished, failed)
        await consumer.ack([delivery for delivery in deliveries if id(delivery) not in unfinished])
        rejected = [plan.delivery for plan in failed.refused if plan.outcome is Outcome.REJECTED]
        refused = [plan for plan in failed.refused if plan.outcome is not Outcome.REJECTED]
        return Unfinished(
            contended=attempt.contended,
            untrusted=attempt.untrusted,
            refused=_redelivered(refused),
            rejected=rejected,
            undecided=[*attempt.undecided, *_redelivered(failed.undecided)],
            unavailable=_redelivered(failed.unavailable),
        )

    async def move_to_end(self, consumer: Acknowledger, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Publish deliveries again, at the end of their queue, and ack those; return the ones that were not confirmed.

        Only for deliveries that were classified: they are published in the service's own name.
        """
        outcomes = await self._publisher.publish(
            [submit_again(delivery, delivery.headers, self._classifier.redrives(delivery)) for delivery in deliveries]
        )
        confirmed = [outcome is PublishOutcome.CONFIRMED for outcome in outcomes]
        await consumer.ack([delivery for delivery, moved in zip(deliveries, confirmed, strict=True) if moved])
        return [delivery for delivery, moved in zip(deliveries, confirmed, strict=True) if not moved]

    def _record(self, deliveries: int, attempt: Planned, finished: list[OutboundPlan], failed: _Failed) -> None:
        contended, untrusted, undecided = len(attempt.contended), len(attempt.untrusted), len(attempt.undecided)
        record_finished(self._meter, finished)
        if repeated := deliveries - len(attempt.plans) - contended - untrusted - undecided:
            self._meter.add(metrics.REPEATED_DELIVERIES, repeated)
        for cause, waiting in (
            (CONTENDED, contended),
            (UNTRUSTED, untrusted),
            (REFUSED, len(failed.refused)),
            (UNAVAILABLE, undecided + len(failed.undecided) + len(failed.unavailable)),
        ):
            if waiting:
                self._meter.add(metrics.WAITING_SUBMISSIONS, waiting, cause)

    async def _publish(self, plans: Sequence[OutboundPlan]) -> _Failed:
        """Publish all messages of the plans; return the plans that were not confirmed completely."""
        failed = _Failed()
        await self._publish_messages([(plan, plan.messages) for plan in plans], failed)
        confirmed = _without(plans, failed.plans)
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
        if in_doubt := {str(outcome): counts[outcome] for outcome in _UNAVAILABLE_OUTCOMES if counts[outcome]}:
            _log.warning("publish_unconfirmed", outcomes=in_doubt)
        refusals: dict[str, list[tuple[Message, PublishOutcome]]] = defaultdict(list)
        remaining = iter(outcomes)
        for plan, part in parts:
            unconfirmed = [
                (message, outcome)
                for message, outcome in zip(part, islice(remaining, len(part)), strict=True)
                if outcome is not PublishOutcome.CONFIRMED
            ]
            if any(outcome in _UNAVAILABLE_OUTCOMES for _, outcome in unconfirmed):
                failed.unavailable.append(plan)
            elif unconfirmed:
                failed.refused.append(plan)
                refusals[plan.delivery.routing_key.rpartition(".")[2]].append(unconfirmed[0])
        _log_refusals(refusals)

    async def _settle(self, plans: Sequence[OutboundPlan], failed: _Failed) -> None:
        """Settle the entries of the plans; add the plans for which that failed to `failed`."""
        plans = [plan for plan in plans if plan.entries]
        with_items = [plan for plan in plans if len(plan.entries) > 1]
        # Items first: once a batch is accepted, a redelivery of it is only acked.
        unsettled, error = await self._unsettled(with_items, [plan.entries[1:] for plan in with_items])
        complete = _without(plans, unsettled)
        without_own, own_error = await self._unsettled(complete, [plan.entries[:1] for plan in complete])
        unsettled += without_own
        error = error or own_error
        if error is not None:
            _log.warning("settle_failed", error=str(error), submissions=len(unsettled))
        if error is not None and len(unsettled) == len(plans):
            failed.unavailable += unsettled
        else:
            failed.undecided += unsettled
        _log.debug("accepted", ids=[plan.entries[0].id for plan in _without(plans, unsettled)])

    async def _unsettled(
        self, plans: Sequence[OutboundPlan], entries: Sequence[Sequence[Entry]]
    ) -> tuple[list[OutboundPlan], StoreUnavailable | None]:
        """Settle some entries of each plan; return the plans for which that failed, and the error if all did."""
        if not plans:
            return [], None
        try:
            results = iter(await self._admission.accepted([entry for own in entries for entry in own]))
        except StoreUnavailable as error:
            return list(plans), error
        answers = [list(islice(results, len(own))) for own in entries]
        return [plan for plan, own in zip(plans, answers, strict=True) if not all(own)], None


def _log_refusals(refusals: Mapping[str, Sequence[tuple[Message, PublishOutcome]]]) -> None:
    """Log which customers' submissions wait, and where the first message of each was to go."""
    for cust_id, messages in refusals.items():
        message, outcome = messages[0]
        _log.warning(
            "publish_refused",
            cust_id=cust_id,
            submissions=len(messages),
            outcome=str(outcome),
            exchange=message.exchange,
            routing_key=message.routing_key,
        )


def _redelivered(plans: Sequence[OutboundPlan]) -> list[Delivery]:
    """Mark deliveries whose settle may have succeeded, so that the next attempt takes none for its own duplicate."""
    return [msgspec.structs.replace(plan.delivery, redelivered=True) for plan in plans]


def _without(plans: Sequence[OutboundPlan], failed: Sequence[OutboundPlan]) -> Sequence[OutboundPlan]:
    return [plan for plan in plans if plan not in failed] if failed else plans
