"""Admission while the store goes away: nothing is paid for twice, and nobody waits for a lease that is nobody's."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ingest.admission import Admission, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Entry
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock
from tests.unit.test_admission import MONTH, task


class ChargeFails(SqliteStore):
    """The store goes away between claim and charge."""

    async def charge(self, charges: Any) -> list[bool]:
        raise StoreUnavailable("away")


class Away(SqliteStore):
    """Takes no changes while `away`."""

    away = False

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        if self.away and changes:
            raise StoreUnavailable("away")
        return await super().apply(changes)


@pytest.fixture
async def shaky(tmp_path: Path) -> AsyncIterator[Away]:
    store = await Away.open(tmp_path / "away.db", clock=Clock())
    yield store
    await store.close()


async def test_what_was_granted_is_refunded_where_the_rest_fails(shaky: Away) -> None:
    """One customer is charged, another refused, and the refusal cannot be written down: nobody has paid for that. The
    claims are given back as soon as the store takes it, so a retry is not kept waiting by a lease."""
    admission = Admission(shaky, lease=30, clock=Clock())
    poor = task("k", Customer(cust_id="poor", monthly_quota=0))
    shaky.away = True
    with pytest.raises(StoreUnavailable):
        await admission.admit([task("k"), poor])
    assert await shaky.used("c", MONTH) == 0
    shaky.away = False
    verdicts = [decision.verdict for decision in await admission.admit([task("k"), poor])]
    assert verdicts == [Verdict.ADMITTED, Verdict.QUOTA_EXHAUSTED]
    assert await shaky.used("c", MONTH) == 1


async def test_a_release_that_does_not_go_is_made_up_for(shaky: Away) -> None:
    """A publish in doubt, then the store is away: the retry finds its claim free all the same, and pays nothing."""
    admission = Admission(shaky, lease=30, clock=Clock())
    first = await admission.admit([task("k")])
    shaky.away = True
    await admission.release(first, refund=False)
    with pytest.raises(StoreUnavailable):
        await admission.admit([task("k")])
    shaky.away = False
    (again,) = await admission.admit([task("k")])
    assert (again.verdict, await shaky.used("c", MONTH)) == (Verdict.ADMITTED, 1)


async def test_an_outage_half_way_gives_the_claims_back(tmp_path: Path) -> None:
    """The error is told, and a retry need not wait for the lease."""
    broken = await ChargeFails.open(tmp_path / "s.db")
    with pytest.raises(StoreUnavailable):
        await Admission(broken).admit([task("k")])
    whole = await SqliteStore.open(tmp_path / "s.db")
    assert (await Admission(whole).admit([task("k")]))[0].verdict is Verdict.ADMITTED
    await broken.close()
    await whole.close()
