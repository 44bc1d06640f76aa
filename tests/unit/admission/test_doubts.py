"""Claims that are released, and those whose submission may have been published."""

from ingest.admission import DOUBT, Verdict
from ingest.domain.ledger import Doubt
from tests.support.admission_harness import AdmissionHarness, batch, task
from tests.support.fakes import MONTHS


async def test_release_with_refund_frees_key_and_quota(harness: AdmissionHarness) -> None:
    """This follows a publish that certainly failed. The retry is charged again, once."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=True)
    assert await harness.used() == 0
    assert (await harness.admit_one(task("k"))).verdict is Verdict.ADMITTED
    assert await harness.used() == 1


async def test_release_without_refund_keeps_charge_for_retry(harness: AdmissionHarness) -> None:
    """This follows a publish that may have succeeded. The retry is admitted at once and is not charged again."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    assert (await harness.admit_one(task("k"))).verdict is Verdict.ADMITTED
    assert await harness.used() == 1


async def test_other_body_waits_until_the_doubt_about_the_first_one_ends(harness: AdmissionHarness) -> None:
    """The first body may have been published. The same body is admitted at once, because a copy is harmless."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    other = task("k", data_url="https://a.example/other")
    assert (await harness.admit_one(other)).verdict is Verdict.CONTENDED
    assert (await harness.admit_one(task("k"))).verdict is Verdict.ADMITTED
    harness.clock.now += DOUBT - 1
    assert (await harness.admit_one(other)).verdict is Verdict.CONTENDED
    harness.clock.now += 1
    assert (await harness.admit_one(other)).verdict is Verdict.ADMITTED


async def test_other_body_is_admitted_at_once_if_nothing_was_published(harness: AdmissionHarness) -> None:
    await harness.admission.release([await harness.admit_one(task("k"))], refund=True)
    other = await harness.admit_one(task("k", data_url="https://a.example/other"))
    assert (other.verdict, await harness.used()) == (Verdict.ADMITTED, 1)


async def test_charge_in_doubt_is_refunded_once_and_charged_again_with_the_next_attempt(
    harness: AdmissionHarness,
) -> None:
    """A batch of two unkeyed items and a keyed one has two entries."""
    await harness.admission.release([await harness.admit_one(batch(None, "x", None, key="b"))], refund=False)
    harness.clock.now += DOUBT / 2 - 1
    assert await harness.admission.refund_doubts() == 0
    harness.clock.now += 1
    assert (await harness.admission.refund_doubts(), await harness.used()) == (2, 0)
    assert (await harness.admission.refund_doubts(), await harness.used()) == (0, 0)
    retry = await harness.admit_one(batch(None, "x", None, key="b"))
    assert (retry.verdict, await harness.used()) == (Verdict.ADMITTED, 3)


async def test_other_body_waits_for_a_batch_in_doubt_that_has_only_keyed_items(harness: AdmissionHarness) -> None:
    """Its own entry covers no task, so nothing is charged for it."""
    await harness.admission.release([await harness.admit_one(batch("x", key="b"))], refund=False)
    assert (await harness.admit_one(batch("y", key="b"))).verdict is Verdict.CONTENDED


async def test_refund_is_made_in_the_month_of_the_charge(harness: AdmissionHarness) -> None:
    """The submission was created in March, refunded, and charged again in April."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    harness.clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    harness.clock.now += 86_400
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    assert [await harness.store.used("c", month) for month in MONTHS] == [0, 1]
    harness.clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    assert [await harness.store.used("c", month) for month in MONTHS] == [0, 0]


async def test_refund_of_an_item_is_made_in_the_month_in_which_an_earlier_batch_was_charged_for_it(
    harness: AdmissionHarness,
) -> None:
    """The later batch is charged only for its own item, in April."""
    await harness.admission.release([await harness.admit_one(batch(None, "x"))], refund=False)
    harness.clock.now += 86_400
    await harness.admission.release([await harness.admit_one(batch(None, "x"))], refund=False)
    assert [await harness.store.used("c", month) for month in MONTHS] == [2, 1]
    harness.clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    assert [await harness.store.used("c", month) for month in MONTHS] == [0, 0]


async def test_doubt_about_events_stays_if_a_later_publish_of_the_submission_is_in_doubt(
    harness: AdmissionHarness,
) -> None:
    """The worker that may have published them gets its message again, so the charge is never refunded."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False, doubt=Doubt.EVENTS)
    retry = await harness.admit_one(task("k"))
    await harness.admission.release([retry], refund=False)
    (entry,) = await harness.store.read([retry.entry.id])
    assert entry is not None
    assert entry.doubt is Doubt.EVENTS
    harness.clock.now += DOUBT
    assert (await harness.admission.refund_doubts(), await harness.used()) == (0, 1)
