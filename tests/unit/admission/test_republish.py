"""A queued submission whose message was lost: a repeat with the same body publishes it again, once an hour."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain.admitted import Admitted, from_body
from ingest.domain.customers import Customer
from ingest.domain.ledger import Change, Phase, Step
from ingest.domain.messages import PublishOutcome
from ingest.shim.pipeline import SubmissionPipeline
from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import batch, task
from tests.support.fakes import MONTHS, Clock, ScriptedPublisher
from tests.support.partial_store import PartialStore

HOUR = 3600.0
LEASE = 30.0


class PipelineHarness:
    """A shim's pipeline on a real ledger with a clock; its publisher records the messages."""

    def __init__(self, store: PartialStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.publisher = ScriptedPublisher()
        self.admission = Admission(store, lease=LEASE, clock=clock, monotonic=clock)
        self._pipeline = SubmissionPipeline(self.admission, self.publisher)

    async def run(self, *requests: Request) -> list[Decision]:
        self.publisher.sent.clear()
        return await self._pipeline.run(requests)

    async def published(self, request: Request, verdict: Verdict = Verdict.REPLAY) -> list[Admitted]:
        """Run one request, which must have the verdict; return what was published for it."""
        (decision,) = await self.run(request)
        assert decision.verdict is verdict
        return [from_body(message.body) for message in self.publisher.sent]

    async def used(self) -> int:
        return sum([await self.store.used("c", month) for month in MONTHS])

    async def accept(self, submission_id: str) -> None:
        await self.admission.accepted([entry for entry in await self.store.read([submission_id]) if entry])

    async def forget(self, submission_id: str) -> None:
        """Let the store lose an entry."""
        entries = [entry for entry in await self.store.read([submission_id]) if entry]
        await self.store.apply([Change(Step.FORGET, entry) for entry in entries])


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[PipelineHarness]:
    clock = Clock()
    store = PartialStore(await SqliteStore.open(tmp_path / "s.db", clock=clock))
    yield PipelineHarness(store, clock)
    await store.close()


async def test_repeat_publishes_a_task_again_that_has_been_queued_for_an_hour(harness: PipelineHarness) -> None:
    """It is answered as a replay, with the original created_at, and is not charged."""
    (first,) = await harness.published(task("k"), Verdict.ADMITTED)
    harness.clock.now += HOUR - 1
    assert await harness.published(task("k")) == []
    harness.clock.now += 1
    assert await harness.published(task("k")) == [first]
    assert await harness.used() == 1


async def test_at_most_one_repeat_in_an_hour_publishes_again(harness: PipelineHarness) -> None:
    await harness.run(task("k"))
    harness.clock.now += HOUR
    decisions = await harness.run(task("k"), task("k"))
    assert [decision.verdict for decision in decisions] == [Verdict.REPLAY] * 2
    assert len(harness.publisher.sent) == 1
    harness.clock.now += HOUR - 1
    assert await harness.published(task("k")) == []
    harness.clock.now += 1
    assert len(await harness.published(task("k"))) == 1


async def test_repeat_with_another_body_publishes_nothing(harness: PipelineHarness) -> None:
    await harness.run(task("k"))
    harness.clock.now += HOUR
    other = task("k", data_url="https://a.example/other")
    assert await harness.published(other) == []
    assert len(await harness.published(task("k"))) == 1


async def test_repeat_of_an_accepted_submission_publishes_nothing(harness: PipelineHarness) -> None:
    await harness.run(task("k"))
    await harness.accept(task("k").submission.id)
    harness.clock.now += HOUR
    assert await harness.published(task("k")) == []


@pytest.mark.parametrize("outcome", [PublishOutcome.NACKED, PublishOutcome.UNKNOWN])
async def test_next_repeat_tries_again_if_the_publish_fails(harness: PipelineHarness, outcome: PublishOutcome) -> None:
    """The repeat is a replay nevertheless: an earlier publish was confirmed."""
    await harness.run(task("k"))
    harness.clock.now += HOUR
    harness.publisher.outcome = outcome
    assert len(await harness.published(task("k"))) == 1
    harness.publisher.outcome = PublishOutcome.CONFIRMED
    harness.clock.now += 1
    assert len(await harness.published(task("k"))) == 1
    assert await harness.published(task("k")) == []
    assert await harness.used() == 1


async def test_repeat_tries_again_when_the_lease_of_a_crashed_one_has_ended(harness: PipelineHarness) -> None:
    """The crashed process had not published anything yet. Its repeat may be in progress until the lease ends."""
    await harness.run(task("k"))
    harness.clock.now += HOUR
    await harness.admission.admit([task("k")])
    harness.clock.now += LEASE - 1
    assert await harness.published(task("k")) == []
    harness.clock.now += 1
    assert len(await harness.published(task("k"))) == 1


async def test_batch_that_is_published_again_names_only_items_of_other_submissions_as_replayed(
    harness: PipelineHarness,
) -> None:
    """Its own items are expanded again."""
    await harness.run(task("x"))
    request = batch("x", "y", None, key="b")
    (first,) = await harness.published(request, Verdict.ADMITTED)
    assert first.replayed == (task("x").submission.id,)
    harness.clock.now += HOUR
    assert await harness.published(batch("x", "y", None, key="b")) == [first]
    assert await harness.used() == 3


async def test_batch_is_not_published_again_while_another_submission_claims_one_of_its_items(
    harness: PipelineHarness,
) -> None:
    """The store has lost the item's entry, and a task with its key and another body has been claimed since."""
    request = batch("x", None, key="b")
    await harness.run(request)
    harness.clock.now += HOUR
    await harness.forget(request.submission.tasks[0].task_id)
    (claimed,) = await harness.admission.admit([task("x", data_url="https://a.example/other")])
    assert await harness.published(batch("x", None, key="b")) == []
    await harness.admission.queued([claimed])
    (again,) = await harness.published(batch("x", None, key="b"))
    assert again.replayed == (task("x").submission.id,)


async def test_repeat_of_an_item_alone_publishes_it_as_a_task(harness: PipelineHarness) -> None:
    """The batch's message may be lost. If it is not, the worker drops the second copy of the item."""
    (first,) = await harness.published(batch("x", None, key="b"), Verdict.ADMITTED)
    harness.clock.now += HOUR
    (again,) = await harness.published(task("x"))
    assert again.submission.id == first.submission.tasks[0].task_id
    assert again.created_at == first.created_at


async def test_new_batch_includes_an_item_that_has_been_queued_for_an_hour(harness: PipelineHarness) -> None:
    """The 202 for the batch promises its item, too. Only the other task is charged."""
    await harness.run(task("x"))
    harness.clock.now += HOUR
    request = batch("x", "y", key="b")
    (message,) = await harness.published(request, Verdict.ADMITTED)
    assert message.replayed == ()
    assert await harness.used() == 2
    assert await harness.published(task("x")) == []


async def test_refused_batch_leaves_its_items_to_the_next_repeat(harness: PipelineHarness) -> None:
    poor = Customer(cust_id="c", monthly_quota=0)
    await harness.run(task("x"))
    harness.clock.now += HOUR
    await harness.published(batch("x", "y", key="b", customer=poor), Verdict.QUOTA_EXHAUSTED)
    harness.clock.now += 1
    assert len(await harness.published(task("x"))) == 1


@pytest.mark.parametrize("operation", ["read", "apply"])
async def test_repeat_is_a_replay_if_the_store_cannot_decide_whether_to_publish(
    harness: PipelineHarness, operation: str
) -> None:
    request = batch("x", key="b")
    await harness.run(request)
    harness.clock.now += HOUR
    harness.store.undecided = {request.submission.id, request.submission.tasks[0].task_id}
    harness.store.operations = {operation}
    assert await harness.published(batch("x", key="b")) == []
    harness.store.undecided = set()
    assert len(await harness.published(batch("x", key="b"))) == 1


async def test_published_again_stays_queued_and_readable(harness: PipelineHarness) -> None:
    """A lookup finds the submission all the time."""
    await harness.run(task("k"))
    harness.clock.now += HOUR
    await harness.admission.admit([task("k")])
    (entry,) = await harness.store.read([task("k").submission.id])
    assert entry
    assert entry.phase is Phase.QUEUED
