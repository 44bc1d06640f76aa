"""Admission while the store cannot decide some records: only their requests are undecided, and nothing is lost."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.admission import DOUBT, Admission, Request, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import batch, task
from tests.support.fakes import MONTHS, Clock
from tests.support.partial_store import PartialStore

MONTH = MONTHS[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[PartialStore]:
    store = PartialStore(await SqliteStore.open(tmp_path / "s.db", clock=clock))
    yield store
    await store.close()


@pytest.fixture
def admission(store: PartialStore, clock: Clock) -> Admission:
    return Admission(store, lease=30, clock=clock, monotonic=clock)


async def verdicts(admission: Admission, *requests: Request) -> list[Verdict]:
    return [decision.verdict for decision in await admission.admit(requests)]


async def verdict_becomes(admission: Admission, request: Request, verdict: Verdict) -> None:
    """Admit the request again and again until the verdict is as expected. Raises TimeoutError."""
    async with asyncio.timeout(10):
        while await verdicts(admission, request) != [verdict]:
            await asyncio.sleep(0.02)


async def stored_ids(store: PartialStore, *ids: str) -> list[bool]:
    return [bool(entry) for entry in await store.read(ids)]


async def test_one_undecided_claim_leaves_its_neighbours_admitted(store: PartialStore, admission: Admission) -> None:
    store.undecided = {task("bad").submission.id}
    expected = [Verdict.ADMITTED, Verdict.UNDECIDED, Verdict.ADMITTED]
    assert await verdicts(admission, task("k1"), task("bad"), task("k2")) == expected
    assert await store.used("c", MONTH) == 2


async def test_undecided_claim_that_took_effect_is_given_back(store: PartialStore, admission: Admission) -> None:
    """Otherwise its key would be contended until the lease ends."""
    store.undecided, store.takes_effect = {task("bad").submission.id}, True
    await admission.admit([task("k"), task("bad")])
    store.undecided = set()
    await verdict_becomes(admission, task("bad"), Verdict.ADMITTED)


async def test_batch_with_an_undecided_item_is_undecided_as_a_whole(store: PartialStore, admission: Admission) -> None:
    """Its other claims are given back, and it is not charged."""
    request = batch("good", "bad", key="b")
    good, bad = (item.task_id for item in request.submission.tasks)
    store.undecided = {bad}
    assert await verdicts(admission, request, batch("other")) == [Verdict.UNDECIDED, Verdict.ADMITTED]
    assert await stored_ids(store, request.submission.id, good) == [False, False]
    assert await store.used("c", MONTH) == 1
    store.undecided = set()
    assert await verdicts(admission, request) == [Verdict.ADMITTED]


@pytest.mark.parametrize("takes_effect", [False, True])
async def test_undecided_take_over_leaves_its_neighbours_admitted_and_is_given_back(
    store: PartialStore, admission: Admission, takes_effect: bool
) -> None:
    """Two claims were released in doubt, with their charges. The next attempts at both are free."""
    await admission.release(await admission.admit([task("bad"), task("k")]), refund=False)
    store.undecided, store.operations, store.takes_effect = {task("bad").submission.id}, {"apply"}, takes_effect
    requests = (task("new"), task("bad"), task("k"))
    expected = [Verdict.ADMITTED, Verdict.UNDECIDED, Verdict.ADMITTED]
    assert await verdicts(admission, *requests) == expected
    store.undecided = set()
    await verdict_becomes(admission, task("bad"), Verdict.ADMITTED)
    assert await store.used("c", MONTH) == 3


async def test_undecided_charge_of_one_customer_leaves_the_others_admitted(
    store: PartialStore, admission: Admission
) -> None:
    """The claims of the undecided requests are given back."""
    busy = Customer(cust_id="busy", monthly_quota=10)
    requests = (task("k", busy), task("k"), task("k2", busy))
    store.undecided = {"busy"}
    assert await verdicts(admission, *requests) == [Verdict.UNDECIDED, Verdict.ADMITTED, Verdict.UNDECIDED]
    assert await stored_ids(store, *[request.submission.id for request in requests]) == [False, True, False]
    store.undecided = set()
    assert await verdicts(admission, *requests) == [Verdict.ADMITTED, Verdict.CONTENDED, Verdict.ADMITTED]
    assert [await store.used(customer, MONTH) for customer in ("busy", "c")] == [2, 1]


async def test_replay_is_answered_while_other_requests_are_undecided(store: PartialStore, admission: Admission) -> None:
    await admission.queued(await admission.admit([task("k")]))
    store.undecided = {task("bad").submission.id}
    assert await verdicts(admission, task("bad"), task("k")) == [Verdict.UNDECIDED, Verdict.REPLAY]


async def test_store_is_unavailable_if_nothing_can_be_decided(store: PartialStore, admission: Admission) -> None:
    store.undecided = {task("k1").submission.id, task("k2").submission.id}
    with pytest.raises(StoreUnavailable):
        await admission.admit([task("k1"), task("k2")])


async def test_pending_change_of_one_entry_does_not_delay_other_admissions(
    store: PartialStore, admission: Admission
) -> None:
    """The record of `queued` fails as long as the entry has trouble. It is made as soon as the trouble ends."""
    decisions = await admission.admit([task("bad"), task("k")])
    store.undecided = {task("bad").submission.id}
    await admission.queued(decisions)
    assert await verdicts(admission, task("other"), task("k")) == [Verdict.ADMITTED, Verdict.REPLAY]
    store.undecided = set()
    await verdict_becomes(admission, task("bad"), Verdict.REPLAY)


@pytest.mark.parametrize("takes_effect", [False, True])
async def test_refund_of_an_undecided_doubt_is_made_later_and_once_and_others_are_made_now(
    store: PartialStore, admission: Admission, clock: Clock, takes_effect: bool
) -> None:
    await admission.release(await admission.admit([task("bad"), task("k1"), task("k2")]), refund=False)
    clock.now += DOUBT / 2
    store.undecided, store.operations, store.takes_effect = {task("bad").submission.id}, {"apply"}, takes_effect
    assert (await admission.refund_doubts(), await store.used("c", MONTH)) == (2, 1)
    store.undecided = set()
    assert (await admission.refund_doubts(), await store.used("c", MONTH)) == (1, 0)
    assert (await admission.refund_doubts(), await store.used("c", MONTH)) == (0, 0)


async def test_refund_that_took_effect_in_an_outage_is_not_lost(
    store: PartialStore, admission: Admission, clock: Clock
) -> None:
    await admission.release(await admission.admit([task("k")]), refund=False)
    clock.now += DOUBT / 2
    store.undecided, store.operations, store.takes_effect = {task("k").submission.id}, {"apply"}, True
    with pytest.raises(StoreUnavailable):
        await admission.refund_doubts()
    store.undecided = set()
    assert (await admission.refund_doubts(), await store.used("c", MONTH)) == (1, 0)
