"""Admission while the store fails: nothing is charged twice, and no claim delays a retry until its lease ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.admission import Admission, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Entry, Phase
from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import task
from tests.support.fakes import MONTHS, Clock


class ChargeFails(SqliteStore):
    """A store that fails between claim and charge."""

    async def charge(self, charges: Any) -> list[bool]:
        raise StoreUnavailable("unavailable")


class ApplyFails(SqliteStore):
    """A store that refuses changes of entries while `unavailable` is true."""

    unavailable = False

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        if self.unavailable and changes:
            raise StoreUnavailable("unavailable")
        return await super().apply(changes)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ApplyFails]:
    store = await ApplyFails.open(tmp_path / "s.db", clock=Clock())
    yield store
    await store.close()


async def test_refused_request_is_decided_although_its_claim_cannot_be_deleted(store: ApplyFails) -> None:
    """Another customer in the same list is admitted. The claim is deleted once the store takes changes again."""
    admission = Admission(store, lease=30, clock=Clock())
    over_quota = task("k", Customer(cust_id="poor", monthly_quota=0))
    store.unavailable = True
    verdicts = [decision.verdict for decision in await admission.admit([task("k"), over_quota])]
    assert verdicts == [Verdict.ADMITTED, Verdict.QUOTA_EXHAUSTED]
    store.unavailable = False
    async with asyncio.timeout(10):
        while await store.read([over_quota.submission.id]) != [None]:
            await asyncio.sleep(0.02)
    assert await store.used("c", MONTHS[0]) == 1


async def test_claims_and_charge_are_given_back_if_the_claims_expired_before_the_end(tmp_path: Path) -> None:
    """The process was suspended for longer than the lease, so nothing is decided."""

    class SuspendedAfterCharge(SqliteStore):
        async def charge(self, charges: Sequence[Charge]) -> list[bool]:
            granted = await super().charge(charges)
            clock.now += 31
            return granted

    clock = Clock()
    store = await SuspendedAfterCharge.open(tmp_path / "s.db", clock=clock)
    request = task("k")
    with pytest.raises(StoreUnavailable):
        await Admission(store, lease=30, clock=clock, monotonic=clock).admit([request])
    assert await store.used("c", MONTHS[0]) == 0
    assert await store.read([request.submission.id]) == [None]
    await store.close()


async def test_failed_release_is_retried(store: ApplyFails) -> None:
    """The publish is unconfirmed, so the retry is not charged again."""
    admission = Admission(store, lease=30, clock=Clock())
    first = await admission.admit([task("k")])
    store.unavailable = True
    await admission.release(first, refund=False)
    store.unavailable = False
    async with asyncio.timeout(10):
        while [decision.verdict for decision in await admission.admit([task("k")])] != [Verdict.ADMITTED]:
            await asyncio.sleep(0.02)
    assert await store.used("c", MONTHS[0]) == 1


async def test_claims_are_released_if_charge_fails(tmp_path: Path) -> None:
    failing = await ChargeFails.open(tmp_path / "s.db")
    with pytest.raises(StoreUnavailable):
        await Admission(failing).admit([task("k")])
    working = await SqliteStore.open(tmp_path / "s.db")
    assert (await Admission(working).admit([task("k")]))[0].verdict is Verdict.ADMITTED
    await failing.close()
    await working.close()


async def test_queued_is_recorded_when_the_store_is_available_again(store: ApplyFails) -> None:
    """No further call is needed."""
    admission = Admission(store, lease=30)
    (decision,) = await admission.admit([task("k")])
    store.unavailable = True
    with pytest.raises(StoreUnavailable):
        await admission.queued([decision])
    store.unavailable = False
    async with asyncio.timeout(10):
        while [entry and entry.phase for entry in await store.read([decision.entry.id])] != [Phase.QUEUED]:
            await asyncio.sleep(0.05)


async def test_changes_that_the_store_has_not_taken_are_applied_when_the_process_stops(store: ApplyFails) -> None:
    """Otherwise a retry waits for the lease, and is charged again."""
    admission = Admission(store, lease=30, clock=Clock())
    first = await admission.admit([task("k")])
    store.unavailable = True
    await admission.release(first, refund=False)
    asyncio.get_running_loop().call_later(0.1, setattr, store, "unavailable", False)
    await admission.close()
    (retry,) = await Admission(store, lease=30, clock=Clock()).admit([task("k")])
    assert (retry.verdict, await store.used("c", MONTHS[0])) == (Verdict.ADMITTED, 1)


async def test_stop_does_not_wait_long_for_a_store_that_is_unavailable(store: ApplyFails) -> None:
    admission = Admission(store, lease=30, clock=Clock())
    first = await admission.admit([task("k")])
    store.unavailable = True
    await admission.release(first, refund=False)
    with capture_logs() as logs:
        await admission.close(0.2)
    assert [log["changes"] for log in logs if log["event"] == "ledger_changes_lost"] == [1]


async def test_claims_of_a_call_that_failed_are_given_back(tmp_path: Path) -> None:
    """Otherwise their keys would be contended until the lease ends."""

    class ClaimsWithoutAnswer(SqliteStore):
        loses_answer = True

        async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
            claimed = await super().claim(entries)
            if self.loses_answer:
                raise StoreUnavailable("no answer")
            return claimed

    store = await ClaimsWithoutAnswer.open(tmp_path / "c.db")
    admission = Admission(store)
    with pytest.raises(StoreUnavailable):
        await admission.admit([task("k")])
    store.loses_answer = False
    async with asyncio.timeout(10):
        while [decision.verdict for decision in await admission.admit([task("k")])] != [Verdict.ADMITTED]:
            await asyncio.sleep(0.02)
    await store.close()


async def test_new_claims_are_admitted_if_a_take_over_in_the_same_list_fails(store: ApplyFails) -> None:
    """One claim is new; the other one was released in doubt, and the change that takes it over fails."""
    admission = Admission(store)
    await admission.release(await admission.admit([task("old")]), refund=False)
    store.unavailable = True
    requests = [task("new"), task("old")]
    verdicts = [decision.verdict for decision in await admission.admit(requests)]
    assert verdicts == [Verdict.ADMITTED, Verdict.UNDECIDED]
    store.unavailable = False
    verdicts = [decision.verdict for decision in await admission.admit(requests)]
    assert verdicts == [Verdict.CONTENDED, Verdict.ADMITTED]
