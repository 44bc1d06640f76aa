"""One micro-batch of the shim: what is published, charged and recorded, if some of its messages are not confirmed."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Doubt, Entry, Phase, Step
from ingest.domain.messages import Message, PublishOutcome
from ingest.domain.submissions import batch_submission, task_submission
from ingest.domain.trace import Trace
from ingest.shim.pipeline import SubmissionPipeline
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock, ScriptedPublisher
from tests.support.tasks import TASK

CUSTOMER = Customer(cust_id="c", monthly_quota=10, retention=3 * 86_400)
MONTH = "2026-03"
"""The month of `Clock`."""
CONFIRMED, UNROUTABLE, UNKNOWN = PublishOutcome.CONFIRMED, PublishOutcome.UNROUTABLE, PublishOutcome.UNKNOWN


class UnreliableStore(SqliteStore):
    """A store that records no confirm while `can_queue` is false, and claims nothing while it `is_down`."""

    can_queue = True
    is_down = False

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        if self.is_down:
            raise StoreUnavailable("unavailable")
        return await super().claim(entries)

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        if not self.can_queue and any(change.step is Step.QUEUE for change in changes):
            raise StoreUnavailable("unavailable")
        return await super().apply(changes)


class OutcomesPublisher(ScriptedPublisher):
    """Answers the messages with `outcomes`, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[PublishOutcome] = []
        self.publishes = 0

    async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        self.publishes += 1
        self.sent += messages
        return [self.outcomes.pop(0) for _ in messages]


class Pipeline:
    """A pipeline on a real ledger."""

    def __init__(self, store: UnreliableStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.publisher = OutcomesPublisher()
        self.admission = Admission(store, clock=clock, monotonic=clock)
        self._pipeline = SubmissionPipeline(self.admission, self.publisher)

    async def run(self, *requests: Request, outcomes: Sequence[PublishOutcome] = ()) -> list[Decision]:
        self.publisher.outcomes = list(outcomes)
        return await self._pipeline.run(requests)

    async def verdicts(self, *requests: Request, outcomes: Sequence[PublishOutcome] = ()) -> list[Verdict]:
        return [decision.verdict for decision in await self.run(*requests, outcomes=outcomes)]

    async def entries(self, *requests: Request) -> list[Entry | None]:
        return await self.store.read([request.submission.id for request in requests])


@pytest.fixture
async def pipeline(tmp_path: Path) -> AsyncIterator[Pipeline]:
    clock = Clock()
    store = await UnreliableStore.open(tmp_path / "s.db", clock=clock)
    yield Pipeline(store, clock)
    await store.close()


def task(key: str, customer: Customer = CUSTOMER) -> Request:
    return Request(task_submission(TASK, customer.cust_id, frozenset(), key), customer)


async def test_each_request_ends_as_its_own_message_does(pipeline: Pipeline) -> None:
    """Confirmed: queued. Certainly not taken: no trace of it. In doubt: charged, for a retry of the same body."""
    requests = confirmed, not_taken, in_doubt, last = task("a"), task("b"), task("c"), task("d")
    outcomes = [CONFIRMED, UNROUTABLE, UNKNOWN, CONFIRMED]
    assert await pipeline.verdicts(*requests, outcomes=outcomes) == [
        Verdict.ADMITTED,
        Verdict.UNCONFIRMED,
        Verdict.UNCONFIRMED,
        Verdict.ADMITTED,
    ]
    first, forgotten, doubtful, fourth = await pipeline.entries(confirmed, not_taken, in_doubt, last)
    assert [entry and entry.phase for entry in (first, fourth)] == [Phase.QUEUED, Phase.QUEUED]
    assert forgotten is None
    assert doubtful is not None
    assert (doubtful.phase, doubtful.doubt, doubtful.charged) == (Phase.CLAIMED, Doubt.OPEN, 1)
    assert await pipeline.store.used("c", MONTH) == 3


async def test_only_admitted_requests_are_published_and_in_one_call(pipeline: Pipeline) -> None:
    """A replay and a request beyond the quota are between them."""
    await pipeline.run(task("replay"), outcomes=[CONFIRMED])
    poor = Customer(cust_id="poor", monthly_quota=0)
    requests = [task("a"), task("replay"), task("k", poor), task("b")]
    verdicts = await pipeline.verdicts(*requests, outcomes=[CONFIRMED, UNROUTABLE])
    assert verdicts == [Verdict.ADMITTED, Verdict.REPLAY, Verdict.QUOTA_EXHAUSTED, Verdict.UNCONFIRMED]
    ids = [message.message_id for message in pipeline.publisher.sent[1:]]
    assert ids == [requests[0].submission.id, requests[3].submission.id]
    assert pipeline.publisher.publishes == 2


async def test_replays_alone_publish_nothing(pipeline: Pipeline) -> None:
    await pipeline.run(task("k"), outcomes=[CONFIRMED])
    assert await pipeline.verdicts(task("k")) == [Verdict.REPLAY]
    assert pipeline.publisher.publishes == 1


async def test_confirmed_request_is_admitted_even_if_that_cannot_be_recorded(pipeline: Pipeline) -> None:
    """The broker has it. The request beside it, which the broker has not taken, is released nevertheless."""
    pipeline.store.can_queue = False
    verdicts = await pipeline.verdicts(task("a"), task("b"), outcomes=[CONFIRMED, UNROUTABLE])
    assert verdicts == [Verdict.ADMITTED, Verdict.UNCONFIRMED]
    assert await pipeline.store.used("c", MONTH) == 1


async def test_unavailable_store_is_an_error_and_nothing_is_published(pipeline: Pipeline) -> None:
    pipeline.store.is_down = True
    with pytest.raises(StoreUnavailable):
        await pipeline.run(task("k"))
    assert pipeline.publisher.publishes == 0


async def test_request_whose_claim_has_expired_is_not_published(pipeline: Pipeline) -> None:
    """The process was suspended after the charge. Another attempt may have published the submission meanwhile."""

    class Suspended(Admission):
        async def admit(self, requests: Sequence[Request]) -> list[Decision]:
            decisions = await super().admit(requests)
            pipeline.clock.now += 30
            return decisions

    suspended = Suspended(pipeline.store, clock=pipeline.clock, monotonic=pipeline.clock)
    decisions = await SubmissionPipeline(suspended, pipeline.publisher).run([task("a"), task("b")])
    assert [decision.verdict for decision in decisions] == [Verdict.UNCONFIRMED] * 2
    assert pipeline.publisher.publishes == 0
    assert await pipeline.store.used("c", MONTH) == 0
    assert await pipeline.verdicts(task("a"), outcomes=[CONFIRMED]) == [Verdict.ADMITTED]


async def test_message_has_the_submission_as_it_was_admitted_and_the_trace_of_its_request(pipeline: Pipeline) -> None:
    """A retry keeps the time of the first attempt, and an item that was accepted before is named."""
    keyed = task("x")
    await pipeline.run(keyed, outcomes=[CONFIRMED])
    body = {"tasks": [TASK, TASK | {"idempotency_key": "x"}]}
    trace = Trace(f"00-{'1' * 32}-{'2' * 16}-01")
    batch = Request(batch_submission(body, "c", frozenset(), "b"), CUSTOMER, trace=trace)
    await pipeline.run(batch, outcomes=[UNROUTABLE])
    await pipeline.run(batch, outcomes=[UNKNOWN])
    pipeline.clock.now += 60
    await pipeline.run(batch, outcomes=[CONFIRMED])
    message = pipeline.publisher.sent[-1]
    assert message.headers == {"traceparent": trace.traceparent}
    content = json.loads(message.body)
    assert content["created_at"] == 1_775_000_000_000
    assert content["retention"] == CUSTOMER.retention
    assert content["replayed"] == [keyed.submission.id]
    assert content["submission"] == json.loads(msgspec.json.encode(batch.submission))
