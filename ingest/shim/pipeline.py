"""What many requests share: one admission, one publish, one ledger write."""

from collections.abc import Sequence

import structlog

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain.admitted import Admitted, to_message
from ingest.domain.errors import StoreUnavailable
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.ports import Publisher
from ingest.shim.problems import Problem, broker_away, store_away

_log = structlog.get_logger(__name__)


class SubmissionPipeline:
    """Admits and publishes lists of requests.

    Args:
        admission: claims and charges.
        publisher: to the ingest queues.
    """

    def __init__(self, admission: Admission, publisher: Publisher) -> None:
        self._admission = admission
        self._publisher = publisher

    async def run(self, requests: Sequence[Request]) -> list[Decision | Problem]:
        """For each request the decision that stands now, or the problem. An ADMITTED one was confirmed."""
        try:
            decisions = await self._admission.admit(requests)
        except StoreUnavailable as error:
            _log.warning("store unavailable, requests refused", error=str(error), requests=len(requests))
            return [store_away() for _ in requests]
        admitted = [index for index, decision in enumerate(decisions) if decision.verdict is Verdict.ADMITTED]
        if not admitted:
            return list(decisions)
        outcomes = await self._publisher.publish([_message(decisions[index]) for index in admitted])
        answers: list[Decision | Problem] = list(decisions)
        confirmed: list[Decision] = []
        untaken: list[Decision] = []
        doubtful: list[Decision] = []
        for index, outcome in zip(admitted, outcomes, strict=True):
            if outcome is PublishOutcome.CONFIRMED:
                confirmed.append(decisions[index])
                continue
            answers[index] = broker_away()
            (untaken if outcome.certainly_not_taken else doubtful).append(decisions[index])
        if confirmed:
            await self._note(confirmed)
        if untaken or doubtful:
            _log.warning("publish not confirmed, requests refused", not_taken=len(untaken), in_doubt=len(doubtful))
            await self._release(untaken, refund=True)
            await self._release(doubtful, refund=False)
        return answers

    async def _note(self, confirmed: Sequence[Decision]) -> None:
        """Before the answer: a GET by id finds what was answered 2xx, and a repeat is a replay."""
        try:
            await self._admission.queued(confirmed)
        except StoreUnavailable as error:
            # The broker has them, which is what 2xx promises. The worker settles what stays claimed.
            _log.warning("store unavailable after the confirm", error=str(error), requests=len(confirmed))

    async def _release(self, decisions: Sequence[Decision], *, refund: bool) -> None:
        if not decisions:
            return
        try:
            await self._admission.release(decisions, refund=refund)
        except StoreUnavailable as error:
            _log.warning(
                "claims not given back yet, it is done before anything else is admitted",
                error=str(error),
                claims=len(decisions),
            )


def _message(decision: Decision) -> Message:
    request = decision.request
    return to_message(
        Admitted(request.submission, decision.entry.created_at, request.customer.retention, decision.replayed),
        request.trace,
    )
