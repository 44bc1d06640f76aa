"""One micro-batch of requests: one admission, one publish, one ledger write."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import structlog

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain.admitted import to_message
from ingest.domain.errors import StoreUnavailable
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.ports import Publisher
from ingest.shim.heavy import HeavyCustomers
from ingest.shim.traffic import TrafficRouter
from ingest.waiting import TimeSlices

_log = structlog.get_logger(__name__)


class SubmissionPipeline:
    """Admits and publishes micro-batches.

    Args:
        admission: claims and charges.
        publisher: publishes to the ingest queues.
        router: chooses the queue; by default one of its own.
    """

    def __init__(self, admission: Admission, publisher: Publisher, router: TrafficRouter | None = None) -> None:
        self._admission = admission
        self._publisher = publisher
        self._router = router or TrafficRouter(HeavyCustomers())

    async def run(self, requests: Sequence[Request]) -> list[Decision]:
        """Decide on each request, in order. An ADMITTED one was confirmed by the broker.

        A replay whose message is probably lost is published again. It stays a replay if that fails, because an earlier
        publish was confirmed; the next repeat tries again.

        Raises:
            StoreUnavailable: nothing was admitted or published.
        """
        try:
            decisions = await self._admission.admit(requests)
        except StoreUnavailable as error:
            _log.warning("admission_failed", error=str(error), requests=len(requests))
            raise
        to_publish = [index for index, decision in enumerate(decisions) if decision.must_publish]
        if not to_publish:
            return decisions
        if all(self._admission.holds(decisions[index]) for index in to_publish):
            outcomes = await self._publisher.publish(await self._messages([decisions[index] for index in to_publish]))
        else:
            outcomes = [PublishOutcome.UNSENT] * len(to_publish)
        confirmed: list[Decision] = []
        not_taken: list[Decision] = []
        in_doubt: list[Decision] = []
        for index, outcome in zip(to_publish, outcomes, strict=True):
            decision = decisions[index]
            if decision.verdict is Verdict.REPLAY:
                _log.warning("submission_published_again", id=decision.entry.id, outcome=str(outcome))
            if outcome is PublishOutcome.CONFIRMED:
                confirmed.append(decision)
                continue
            (not_taken if outcome.certainly_not_taken else in_doubt).append(decision)
            if decision.verdict is Verdict.ADMITTED:
                decisions[index] = msgspec.structs.replace(decision, verdict=Verdict.UNCONFIRMED)
        await self._record_queued(confirmed)
        if not_taken or in_doubt:
            unconfirmed = Counter(map(str, outcomes))
            unconfirmed.pop(PublishOutcome.CONFIRMED, None)
            _log.warning("publish_unconfirmed", outcomes=dict(unconfirmed))
            await self._admission.release(not_taken, refund=True)
            await self._admission.release(in_doubt, refund=False)
        return decisions

    async def _record_queued(self, confirmed: Sequence[Decision]) -> None:
        """Record the confirms before the answers: a GET must find what was answered 2xx, and a repeat is a replay."""
        try:
            await self._admission.queued(confirmed)
        except StoreUnavailable as error:
            # The broker has the submissions, which is what a 2xx promises. The worker settles entries that stay
            # claimed.
            _log.warning("queued_not_recorded", error=str(error), requests=len(confirmed))

    async def _messages(self, decisions: Sequence[Decision]) -> list[Message]:
        messages = []
        slices = TimeSlices()
        for decision, route in zip(decisions, self._router.routes(decisions), strict=True):
            await slices.between()
            messages.append(to_message(decision.admitted, decision.request.trace, route))
        return messages
