"""What admission charges and refunds, also if the store fails or the process is suspended in the middle."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from ingest.admission import DOUBT, Admission, Decision, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Entry, Phase, Step
from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import batch, task
from tests.support.fakes import MONTHS, Clock

POOR = Customer(cust_id="c", monthly_quota=1)


class ScriptedStore(SqliteStore):
    """A store that records its calls. Those in `failing` fail; a charge takes `charge_seconds`."""

    def prepare(self, clock: Clock) -> Self:
        self.clock = clock
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.charge_seconds = 0.0
        self.refunded: list[Charge] = []
        return self

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        self._call("claim")
        return await super().claim(entries)

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        self._call("apply")
        return await super().apply(changes)

    async def charge(self, charges: Sequence[Charge]) -> list[bool]:
        self._call("charge")
        self.clock.now += self.charge_seconds
        return await super().charge(charges)

    async def refund(self, charges: Sequence[Charge]) -> None:
        self._call("refund")
        self.refunded += charges
        await super().refund(charges)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise StoreUnavailable("unavailable")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[ScriptedStore]:
    store = (await ScriptedStore.open(tmp_path / "s.db", clock=clock)).prepare(clock)
    yield store
    await store.close()


@pytest.fixture
def admission(store: ScriptedStore, clock: Clock) -> Admission:
    return Admission(store, lease=30, clock=clock, monotonic=clock)


async def used(store: SqliteStore, month: str = MONTHS[0]) -> int:
    return await store.used("c", month)


async def leave_in_doubt(admission: Admission, *requests: Any) -> list[Decision]:
    decisions = await admission.admit(requests)
    await admission.release(decisions, refund=False)
    return decisions


async def test_task_is_admitted_with_one_claim_and_one_charge(admission: Admission, store: ScriptedStore) -> None:
    """A replay needs one call, and a request that exceeds the quota needs one more, to give its claim back."""
    decisions = await admission.admit([task("k"), task("other")])
    assert store.calls == ["claim", "charge"]
    await admission.queued(decisions)
    store.calls.clear()
    assert [decision.verdict for decision in await admission.admit([task("k")])] == [Verdict.REPLAY]
    assert store.calls == ["claim"]
    store.calls.clear()
    assert [decision.verdict for decision in await admission.admit([task("new", POOR)])] == [Verdict.QUOTA_EXHAUSTED]
    assert store.calls == ["claim", "charge", "apply"]


async def test_free_retry_makes_no_charge_and_is_admitted_even_if_the_quota_was_lowered(
    admission: Admission, store: ScriptedStore
) -> None:
    """It was charged before."""
    await leave_in_doubt(admission, task("k"))
    store.calls.clear()
    (retry,) = await admission.admit([task("k", Customer(cust_id="c", monthly_quota=0))])
    assert (retry.verdict, store.calls) == (Verdict.ADMITTED, ["claim", "apply"])


async def test_release_of_nothing_makes_no_call(admission: Admission, store: ScriptedStore) -> None:
    await admission.release([], refund=True)
    await admission.release([], refund=False)
    assert store.calls == []


async def test_charges_made_one_by_one_are_refunded_if_the_rest_of_the_admission_fails(
    admission: Admission, store: ScriptedStore
) -> None:
    """The first of two requests is within the quota. The three charges take longer than the lease."""
    store.charge_seconds = 10
    with pytest.raises(StoreUnavailable):
        await admission.admit([task("a", POOR), task("b", POOR)])
    assert await used(store) == 0
    store.charge_seconds = 0
    verdicts = [decision.verdict for decision in await admission.admit([task("a", POOR), task("b", POOR)])]
    assert (verdicts, await used(store)) == ([Verdict.ADMITTED, Verdict.QUOTA_EXHAUSTED], 1)


async def test_claim_beyond_the_quota_that_cannot_be_given_back_fails_no_other_request(
    admission: Admission, store: ScriptedStore
) -> None:
    """The first of two requests is within the quota. The claim of the other one is given back later."""
    store.failing = {"apply"}
    verdicts = [decision.verdict for decision in await admission.admit([task("a", POOR), task("b", POOR)])]
    assert (verdicts, await used(store)) == ([Verdict.ADMITTED, Verdict.QUOTA_EXHAUSTED], 1)
    store.failing = set()
    await admission.close()
    assert await store.read([task("b", POOR).submission.id]) == [None]


async def test_quota_of_one_customer_does_not_limit_another_one_in_the_same_list(
    admission: Admission, store: ScriptedStore
) -> None:
    """Each is charged its own sum."""
    other = Customer(cust_id="d", monthly_quota=100)
    requests = [task("a", POOR), task("a", other), batch(None, None, customer=other), task("b", POOR)]
    verdicts = [decision.verdict for decision in await admission.admit(requests)]
    assert verdicts == [Verdict.ADMITTED, Verdict.ADMITTED, Verdict.ADMITTED, Verdict.QUOTA_EXHAUSTED]
    assert (await used(store), await store.used("d", MONTHS[0])) == (1, 3)


async def test_process_suspended_during_its_charge_is_refunded(
    admission: Admission, store: ScriptedStore, clock: Clock
) -> None:
    """Another attempt may have taken the claims over. They have expired at the end of the lease, not later."""
    store.charge_seconds = 30
    with pytest.raises(StoreUnavailable):
        await admission.admit([task("k")])
    assert await used(store) == 0
    store.charge_seconds = 29.9
    (decision,) = await admission.admit([task("k")])
    assert (decision.verdict, await used(store)) == (Verdict.ADMITTED, 1)
    assert admission.holds(decision)
    clock.now += 0.1
    assert not admission.holds(decision)


async def test_claims_are_given_back_even_if_the_refund_fails(admission: Admission, store: ScriptedStore) -> None:
    """The customer is charged too much, which is allowed if the store fails, but a retry need not wait."""
    store.charge_seconds, store.failing = 30, {"refund"}
    with pytest.raises(StoreUnavailable):
        await admission.admit([task("k")])
    store.charge_seconds, store.failing = 0, set()
    (decision,) = await admission.admit([task("k")])
    assert (decision.verdict, await used(store)) == (Verdict.ADMITTED, 2)


async def test_release_whose_refund_fails_keeps_the_charge_for_the_retry(
    admission: Admission, store: ScriptedStore
) -> None:
    store.failing = {"refund"}
    await admission.release(await admission.admit([task("k")]), refund=True)
    store.failing = set()
    (retry,) = await admission.admit([task("k")])
    assert (retry.verdict, await used(store)) == (Verdict.ADMITTED, 1)


async def test_retry_that_was_charged_nothing_has_nothing_to_refund(admission: Admission, store: ScriptedStore) -> None:
    """The first attempt was charged. Its charge stays in its entry, with its month, until the doubt is resolved."""
    await leave_in_doubt(admission, task("k"))
    (retry,) = await admission.admit([task("k")])
    assert retry.charge is None
    await admission.release([retry], refund=True)
    assert (store.refunded, await used(store)) == ([], 1)
    await leave_in_doubt(admission, task("k"))
    assert await used(store) == 1


async def test_free_retry_keeps_the_month_of_the_charge(
    admission: Admission, store: ScriptedStore, clock: Clock
) -> None:
    """The submission was created in March, its charge refunded, and charged again in April. Another retry is free."""
    await admission.release(await admission.admit([task("k")]), refund=False)
    clock.now += DOUBT / 2
    assert await admission.refund_doubts() == 1
    await leave_in_doubt(admission, task("k"))
    assert (await used(store, "2026-03"), await used(store, "2026-04")) == (0, 1)
    await leave_in_doubt(admission, task("k"))
    clock.now += DOUBT / 2
    assert await admission.refund_doubts() == 1
    assert [charge.month for charge in store.refunded] == ["2026-03", "2026-04"]
    assert await used(store, "2026-04") == 0


async def test_refund_of_an_entry_without_a_month_is_made_in_the_month_of_its_creation(
    admission: Admission, store: ScriptedStore, clock: Clock
) -> None:
    """An older version has written the entry."""
    (decision,) = await leave_in_doubt(admission, task("k"))
    (entry,) = await store.read([decision.entry.id])
    assert entry is not None
    await store.apply([Change(Step.RELEASE, msgspec.structs.replace(entry, charged_month=""))])
    clock.now += 86_400
    assert await admission.refund_doubts() == 1
    assert [(charge.month, charge.count) for charge in store.refunded] == [("2026-03", 1)]


async def test_refund_that_failed_is_made_by_the_next_search(
    admission: Admission, store: ScriptedStore, clock: Clock
) -> None:
    """Each of three charges is refunded once, although their entries are marked as refunded before."""
    await leave_in_doubt(admission, task("a"), batch(None, None, key="b"), task("c"))
    clock.now += DOUBT / 2
    store.failing = {"refund"}
    with pytest.raises(StoreUnavailable):
        await admission.refund_doubts()
    assert await used(store) == 4
    store.failing = set()
    assert await admission.refund_doubts() == 0
    assert (await used(store), sorted(charge.count for charge in store.refunded)) == (0, [1, 1, 2])
    await admission.refund_doubts()
    assert len(store.refunded) == 3


async def test_only_one_of_two_concurrent_searches_refunds_a_charge(
    admission: Admission, store: ScriptedStore, clock: Clock, tmp_path: Path
) -> None:
    """The second one has found the entry before the first one changed it."""

    class FoundEarlier(ScriptedStore):
        entries: list[Entry]

        async def in_doubt(self, idle: int) -> list[Entry]:
            return self.entries

    await leave_in_doubt(admission, task("k"), task("other"))
    await admission.queued(await admission.admit([task("other")]))
    await admission.release(await admission.admit([task("third")]), refund=False)
    clock.now += DOUBT / 2
    late = (await FoundEarlier.open(tmp_path / "s.db", clock=clock)).prepare(clock)
    late.entries = await store.in_doubt(0)
    assert await admission.refund_doubts() == 2
    assert await Admission(late, clock=clock).refund_doubts() == 0
    assert (late.refunded, await used(store)) == ([], 1)
    await late.close()


async def test_each_search_marks_what_it_refunds_with_a_name_of_its_own(
    admission: Admission, store: ScriptedStore, clock: Clock
) -> None:
    """After a write in doubt, the store compares names to know whose change took effect."""
    decisions = await leave_in_doubt(admission, task("a"), task("b"))
    owners = {decision.entry.owner for decision in decisions}
    clock.now += DOUBT / 2
    await admission.refund_doubts()
    entries = await store.read([decision.entry.id for decision in decisions])
    assert len(owners | {entry.owner for entry in entries if entry}) == 4
    assert [entry and (entry.phase, entry.charged, entry.lease) for entry in entries] == [(Phase.CLAIMED, 0, 0)] * 2
