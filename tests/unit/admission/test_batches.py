"""Admission of batches: their keyed items have entries of their own."""

import msgspec
import pytest

from ingest.admission import DOUBT, Verdict
from tests.support.admission_harness import AdmissionHarness, batch, task


async def test_batch_is_charged_only_for_new_tasks(harness: AdmissionHarness) -> None:
    """An item whose key was queued before is a replay within the batch. Two items with the same key are one task."""
    await harness.admission.queued([await harness.admit_one(task("x"))])
    decision = await harness.admit_one(batch("x", "y", "y", None, key="b"))
    assert decision.verdict is Verdict.ADMITTED
    assert decision.replayed == (task("x").submission.id,)
    assert await harness.used() == 3


async def test_batch_has_own_entry_and_one_for_each_item_key(harness: AdmissionHarness) -> None:
    """Unkeyed items have no entry of their own; the batch's entry lists their ids."""
    decision = await harness.admit_one(batch(None, "x", None, "y", "x", key="b"))
    tasks = decision.request.submission.tasks
    assert [entry.id for entry in decision.owned] == [decision.entry.id, tasks[1].task_id, tasks[3].task_id]
    assert decision.entry.task_ids == [task.task_id for task in tasks]
    assert [decision.entry.covers_index(index) for index in range(6)] == [True, False, True, False, False, False]
    stored = await harness.store.read([decision.entry.id, *[task.task_id for task in tasks]])
    assert [entry is not None for entry in stored] == [True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("first", "second", "charged"),
    [
        ([None] * 4, [None] * 4, 4),
        ([None] * 2, [None] * 5, 5),
        ([None] * 5, [None] * 2, 5),
        ([None, "x", None], [None, "x", None], 3),
        ([None, "x"], ["x", None, None, "y"], 4),
        (["x", "y"], [None, None], 4),
        ([None, "x", "x"], ["x", None, "x"], 2),
    ],
)
async def test_retry_of_unconfirmed_batch_is_charged_only_for_uncharged_tasks(
    harness: AdmissionHarness, first: list[str | None], second: list[str | None], charged: int
) -> None:
    """This also holds if the retry has a different body. The stored entry is then the retry's."""
    await harness.admission.release([await harness.admit_one(batch(*first, key="b"))], refund=False)
    harness.clock.now += DOUBT
    retry = await harness.admit_one(batch(*second, key="b"))
    assert (retry.verdict, await harness.used()) == (Verdict.ADMITTED, charged)
    (stored,) = await harness.store.read([retry.entry.id])
    assert stored is not None
    assert stored.fingerprint == retry.request.submission.fingerprint
    assert stored.task_ids == [task.task_id for task in retry.request.submission.tasks]
    # A refund takes back only what the retry was charged, and the next retry is charged for it again.
    await harness.admission.release([retry], refund=True)
    assert (await harness.admit_one(batch(*second, key="b"))).verdict is Verdict.ADMITTED
    assert await harness.used() == charged


async def test_expired_batch_claim_is_taken_over_with_its_items(harness: AdmissionHarness) -> None:
    """After the lease, the retry holds the batch and its keyed items and keeps the original creation time."""
    first = await harness.admit_one(batch(None, "x", key="b"))
    assert (await harness.admit_one(batch(None, "x", key="b"))).verdict is Verdict.CONTENDED
    harness.clock.now += 31
    second = await harness.admit_one(batch(None, "x", key="b"))
    assert second.verdict is Verdict.ADMITTED
    assert [entry.id for entry in second.owned] == [entry.id for entry in first.owned]
    assert second.entry.created_at == first.entry.created_at
    await harness.admission.queued([first])  # the first owner resumes, but its claims were taken over
    stored = await harness.store.read([entry.id for entry in second.owned])
    assert [entry.is_durable for entry in stored if entry] == [False, False]


async def test_item_queued_by_crashed_batch_is_published_again_by_retry(harness: AdmissionHarness) -> None:
    """The crash left the item queued and its batch claimed. The retry includes the item, and does not report a replay.

    The retry is not charged for the item, but again for the unkeyed one.
    """
    first = await harness.admit_one(batch(None, "x", key="b"))
    await harness.admission.queued([msgspec.structs.replace(first, owned=first.owned[1:])])
    harness.clock.now += 31
    second = await harness.admit_one(batch(None, "x", key="b"))
    assert (second.verdict, second.replayed) == (Verdict.ADMITTED, ())
    assert [entry.id for entry in second.owned] == [second.entry.id]
    assert await harness.used() == 3


async def test_batch_releases_its_claims_if_an_item_is_contended(harness: AdmissionHarness) -> None:
    """Nothing is charged and nothing stays claimed, so that neither attempt waits for the other."""
    await harness.admit_one(task("x"))
    assert (await harness.admit_one(batch("w", "x", key="b"))).verdict is Verdict.CONTENDED
    assert await harness.used() == 1
    assert (await harness.admit_one(task("w"))).verdict is Verdict.ADMITTED


async def test_batch_that_exceeds_quota_is_refused_whole(harness: AdmissionHarness) -> None:
    """Nothing is charged, and neither the batch nor an item keeps a claim."""
    decision = await harness.admit_one(batch(None, *[f"i{i}" for i in range(10)], key="b"))
    assert (decision.verdict, await harness.used()) == (Verdict.QUOTA_EXHAUSTED, 0)
    task_ids = [task.task_id for task in decision.request.submission.tasks]
    assert await harness.store.read([decision.request.submission.id, *task_ids]) == [None] * 12
