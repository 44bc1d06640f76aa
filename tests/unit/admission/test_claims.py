"""Claims: how long they last, what a take-over keeps, and what another attempt leaves free."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from ingest.admission import DOUBT, Admission, Request, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Charge, Doubt, Entry
from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import AdmissionHarness, batch, task
from tests.support.fakes import Clock

CUSTOMER = Customer(cust_id="c", monthly_quota=100, retention=5 * 86_400)
OTHER_URL = "https://a.example/other"


class ChargeFails(SqliteStore):
    """A store that charges nothing while `unavailable` is true. A claim takes `seconds_per_claim`."""

    unavailable = False
    seconds_per_claim = 0.0

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        claimed = await super().claim(entries)
        if isinstance(self._clock, Clock):
            self._clock.now += self.seconds_per_claim
        return claimed

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        if self.unavailable:
            raise StoreUnavailable("unavailable")
        return await super().charge(charges)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ChargeFails]:
    store = await ChargeFails.open(tmp_path / "s.db", clock=Clock())
    yield store
    await store.close()


@pytest.fixture
async def harness(store: ChargeFails) -> AdmissionHarness:
    clock = store._clock
    assert isinstance(clock, Clock)
    return AdmissionHarness(store, clock)


async def verdict(harness: AdmissionHarness, key: str, url: str = "https://a.example/x") -> Verdict:
    return (await harness.admit_one(task(key, data_url=url))).verdict


async def entry_of(harness: AdmissionHarness, entry_id: str) -> Entry:
    (entry,) = await harness.store.read([entry_id])
    assert entry is not None
    return entry


async def test_claim_is_dated_and_lasts_exactly_as_long_as_its_lease(harness: AdmissionHarness) -> None:
    first = await harness.admit_one(task("k"))
    assert (first.entry.created_at, first.entry.lease) == (1_775_000_000_000, 30_000)
    harness.clock.now += 29.999
    assert await verdict(harness, "k") is Verdict.CONTENDED
    harness.clock.now += 0.001
    assert await verdict(harness, "k") is Verdict.ADMITTED


async def test_other_body_waits_for_a_claim_whose_owner_has_crashed(harness: AdmissionHarness) -> None:
    """The owner may have published the submission before it crashed."""
    await harness.admit_one(task("k"))
    harness.clock.now += DOUBT - 0.001
    assert await verdict(harness, "k", url=OTHER_URL) is Verdict.CONTENDED
    harness.clock.now += 0.001
    assert await verdict(harness, "k", url=OTHER_URL) is Verdict.ADMITTED


async def test_other_body_waits_after_an_attempt_has_given_back_a_claim_whose_lease_had_ended(
    harness: AdmissionHarness, store: ChargeFails
) -> None:
    """The first owner may have crashed after its publish. The second has the same body, and cannot charge it."""
    await harness.admit_one(task("k"))
    harness.clock.now += 31
    store.unavailable = True
    with pytest.raises(StoreUnavailable):
        await harness.admit_one(task("k"))
    store.unavailable = False
    assert await verdict(harness, "k", url=OTHER_URL) is Verdict.CONTENDED
    assert await verdict(harness, "k") is Verdict.ADMITTED


async def test_claim_is_not_taken_over_during_its_lease_even_if_the_doubt_is_shorter(store: ChargeFails) -> None:
    clock = Clock()
    admission = Admission(store, lease=30, doubt=10, clock=clock, monotonic=clock)
    await admission.admit([task("k")])
    store._clock = lambda: clock() + 29
    (decision,) = await admission.admit([task("k", data_url=OTHER_URL)])
    assert decision.verdict is Verdict.CONTENDED


async def test_doubt_and_charge_outlast_a_retry_that_was_not_published(harness: AdmissionHarness) -> None:
    """The first attempt may have been published, so another body must still wait."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    retry = await harness.admit_one(task("k"))
    await harness.admission.release([retry], refund=True)
    entry = await entry_of(harness, retry.entry.id)
    assert (entry.charged, entry.doubt, entry.lease, await harness.used()) == (1, Doubt.OPEN, 0, 1)
    assert await verdict(harness, "k", url=OTHER_URL) is Verdict.CONTENDED


async def test_take_over_that_cannot_be_charged_is_released_with_its_earlier_charge(
    harness: AdmissionHarness, store: ChargeFails
) -> None:
    """A new item in the batch must be charged, and the store fails. The next retry need not wait for the lease."""
    await harness.admission.release([await harness.admit_one(batch(None, key="b"))], refund=False)
    harness.clock.now += DOUBT
    store.unavailable = True
    with pytest.raises(StoreUnavailable):
        await harness.admit_one(batch(None, None, key="b"))
    store.unavailable = False
    retry = await harness.admit_one(batch(None, None, key="b"))
    assert (retry.verdict, await harness.used()) == (Verdict.ADMITTED, 2)


async def test_take_over_keeps_the_retention_and_takes_the_fields_of_its_own_body(harness: AdmissionHarness) -> None:
    """The customer's retention was changed in between: what was promised for the key stays."""
    first = await harness.admit_one(task("k", CUSTOMER))
    await harness.admission.release([first], refund=False)
    longer = msgspec.structs.replace(CUSTOMER, retention=10 * 86_400)
    second = await harness.admit_one(task("k", longer))
    assert (second.entry.retention, second.entry.created_at) == (CUSTOMER.retention, first.entry.created_at)
    assert second.entry.owner != first.entry.owner
    assert second.entry.generation > first.entry.generation


@pytest.mark.parametrize("is_queued", [False, True])
async def test_batch_that_is_not_admitted_claims_none_of_its_items(harness: AdmissionHarness, is_queued: bool) -> None:
    """Another attempt holds its key, or it is a replay with another body. The key of the item stays free."""
    first = await harness.admit_one(batch("x", key="b"))
    if is_queued:
        await harness.admission.queued([first])
    repeat = await harness.admit_one(batch("y", key="b"))
    assert repeat.verdict is (Verdict.REPLAY if is_queued else Verdict.CONTENDED)
    assert repeat.owned == ()
    assert await verdict(harness, "y") is Verdict.ADMITTED


async def test_contended_batch_does_not_affect_another_one_in_the_same_list(harness: AdmissionHarness) -> None:
    await harness.admit_one(task("x"))
    contended, admitted = await harness.admit(batch("x", key="1"), batch("y", key="2"))
    assert (contended.verdict, contended.owned, contended.charge) == (Verdict.CONTENDED, (), None)
    assert (admitted.verdict, len(admitted.owned)) == (Verdict.ADMITTED, 2)
    assert admitted.charge is not None
    assert admitted.charge.count == 1


async def test_item_of_two_batches_in_one_list_belongs_to_one_of_them(harness: AdmissionHarness) -> None:
    decisions = await harness.admit(batch("x", None, key="1"), batch("x", None, key="2"))
    assert sorted(decision.verdict for decision in decisions) == [Verdict.ADMITTED, Verdict.CONTENDED]
    assert await harness.used() == 2


async def test_single_task_and_a_batch_with_its_key_are_not_both_admitted(harness: AdmissionHarness) -> None:
    single, both = await harness.admit(task("x"), batch("x", None, key="b"))
    assert (single.verdict, both.verdict, await harness.used()) == (Verdict.ADMITTED, Verdict.CONTENDED, 1)


async def test_queued_batch_makes_its_items_durable(harness: AdmissionHarness) -> None:
    decision = await harness.admit_one(batch(None, "x", key="b"))
    await harness.admission.queued([decision])
    assert [(await entry_of(harness, entry.id)).is_durable for entry in decision.owned] == [True, True]
    assert await verdict(harness, "x") is Verdict.REPLAY


@pytest.mark.parametrize("first", [task("k"), batch(None, "i", key="k")])
async def test_quota_does_not_refuse_a_submission_that_a_crashed_attempt_may_have_published(
    harness: AdmissionHarness, first: Request
) -> None:
    """It was charged before its events were published. To refuse it would contradict its acceptance."""
    assert (await harness.admit_one(first)).verdict is Verdict.ADMITTED  # and its process crashes
    others = [task(str(number)) for number in range(20)]
    assert Verdict.QUOTA_EXHAUSTED in {decision.verdict for decision in await harness.admit(*others)}
    harness.clock.now += 31
    again, other = await harness.admit(first, task("new"))
    assert (again.verdict, other.verdict) == (Verdict.ADMITTED, Verdict.QUOTA_EXHAUSTED)
    assert await harness.used() == 10 + len(first.submission.tasks)


async def use_up_the_quota(harness: AdmissionHarness) -> None:
    others = await harness.admit(*[task(f"other-{number}") for number in range(20)])
    assert Verdict.QUOTA_EXHAUSTED in {decision.verdict for decision in others}


async def test_outage_after_the_crash_changes_nothing(harness: AdmissionHarness, store: ChargeFails) -> None:
    """The attempt after the crash gives the claim back."""
    await harness.admit_one(task("k"))
    await use_up_the_quota(harness)
    harness.clock.now += 31
    store.unavailable = True
    with pytest.raises(StoreUnavailable):
        await harness.admit_one(task("k"))
    store.unavailable = False
    assert await verdict(harness, "k") is Verdict.ADMITTED


async def test_attempt_that_published_nothing_after_the_crash_changes_nothing(harness: AdmissionHarness) -> None:
    await harness.admit_one(task("k"))
    await use_up_the_quota(harness)
    harness.clock.now += 31
    await harness.admission.release([await harness.admit_one(task("k"))], refund=True)
    assert await verdict(harness, "k") is Verdict.ADMITTED


async def test_item_whose_lease_ends_later_than_that_of_its_crashed_batch_changes_nothing(
    harness: AdmissionHarness, store: ChargeFails
) -> None:
    """The attempt in between finds the item contended, and gives the batch back."""
    wanted = batch(None, "i", key="k")
    store.seconds_per_claim = 0.5
    assert (await harness.admit_one(wanted)).verdict is Verdict.ADMITTED
    store.seconds_per_claim = 0.0
    await use_up_the_quota(harness)
    harness.clock.now += 29.1
    assert (await harness.admit_one(wanted)).verdict is Verdict.CONTENDED
    harness.clock.now += 1
    assert (await harness.admit_one(wanted)).verdict is Verdict.ADMITTED


async def test_quota_refuses_another_body_also_the_second_time(harness: AdmissionHarness) -> None:
    """The doubt about the first body does not become one about the second."""
    harness.clock.now -= 86_400
    await harness.admit_one(task("k"))
    await use_up_the_quota(harness)
    harness.clock.now += 31
    await harness.admission.release([await harness.admit_one(task("k"))], refund=True)
    harness.clock.now += DOUBT
    for _ in range(2):
        assert await verdict(harness, "k", url=OTHER_URL) is Verdict.QUOTA_EXHAUSTED


async def test_quota_refuses_another_body_of_a_claim_whose_owner_has_crashed(harness: AdmissionHarness) -> None:
    harness.clock.now -= 86_400  # so that the doubt ends in the same month
    await harness.admit_one(task("k"))
    await harness.admit(*[task(str(number)) for number in range(9)])
    harness.clock.now += DOUBT + 31
    assert (await harness.admit_one(task("k", data_url=OTHER_URL))).verdict is Verdict.QUOTA_EXHAUSTED
