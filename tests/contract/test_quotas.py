"""The promises of `domain.ports.Store` about quotas and rates, tested on every store."""

import asyncio
import uuid

from ingest.domain.ledger import Charge
from ingest.domain.ports import Store
from ingest.domain.rates import PermitClaim
from tests.support.decided import decided


async def test_concurrent_charges_never_exceed_the_limit(store: Store) -> None:
    """Of 60 concurrent charges of 3 under a limit of 100, 33 are granted."""
    charge = Charge(uuid.uuid4().hex, "2026-11", 3, 100)
    results = await asyncio.gather(*[store.charge([charge]) for _ in range(60)])
    assert sum(result == [True] for result in results) == 33
    assert await store.used(charge.cust_id, "2026-11") == 99


async def test_charges_are_counted_per_customer_and_month(store: Store) -> None:
    """The first charge of a month is refused, too, if it is above the limit."""
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    charges = [Charge(mine, "2026-11", 2, 2), Charge(other, "2026-11", 5, 4), Charge(mine, "2026-12", 1, 2)]
    assert await store.charge(charges) == [True, False, True]
    assert await store.charge([Charge(mine, "2026-11", 1, 2)]) == [False]
    assert (await store.used(mine, "2026-11"), await store.used(other, "2026-11")) == (2, 0)


async def test_tasks_charged_are_read_for_many_customers(store: Store) -> None:
    """In the order of the question; a customer without a charge has none."""
    names = [uuid.uuid4().hex for _ in range(3)]
    await store.charge([Charge(name, "2026-11", number + 1, 9) for number, name in enumerate(names)])
    await store.charge([Charge(names[0], "2026-12", 5, 9)])
    assert await store.used_by([names[2], "unknown", names[0]], "2026-11") == [3, 0, 1]
    assert await store.used_by([], "2026-11") == []


async def test_refund_makes_new_charges_possible_and_never_goes_below_zero(store: Store) -> None:
    charge = Charge(uuid.uuid4().hex, "2026-11", 2, 2)
    await store.charge([charge])
    await store.refund([charge])
    await store.refund([charge])
    assert await store.used(charge.cust_id, "2026-11") == 0
    assert await store.charge([charge]) == [True]


async def test_claims_of_permits_are_added_per_customer_and_window(store: Store) -> None:
    """A window is known by its length and its number."""
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    claims = [PermitClaim(mine, 1, 7, 3), PermitClaim(other, 1, 7, 1), PermitClaim(mine, 60, 7, 5)]
    assert await store.claim_permits(claims) == [3, 1, 5]
    assert await store.claim_permits([PermitClaim(mine, 1, 8, 2), PermitClaim(mine, 1, 7, 2)]) == [2, 5]


async def test_concurrent_claims_of_permits_lose_none(store: Store) -> None:
    """Each of 60 claims gets another sum."""
    claim_of_2 = PermitClaim(uuid.uuid4().hex, 1, 7, 2)
    answers = await asyncio.gather(*[store.claim_permits([claim_of_2]) for _ in range(60)])
    assert sorted(claimed for answer in answers for claimed in decided(answer)) == list(range(2, 122, 2))
