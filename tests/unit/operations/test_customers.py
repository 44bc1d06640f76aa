"""What operators see of customers: a list with what is used this month, and one of them with its keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ports import Store
from ingest.domain.rates import RateLimit
from ingest.operations.customers import CustomerSummary, KeySummary, find_customer, list_customers
from ingest.store.sqlite import SqliteStore
from tests.support.customer_harness import CustomerHarness

MARCH = 1_775_000_000.0
"""Half an hour before April 2026."""


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[CustomerHarness]:
    harness = await CustomerHarness.open(tmp_path)
    yield harness
    await harness.store.close()


async def test_list_has_the_numbers_of_each_customer(harness: CustomerHarness) -> None:
    """A revoked key does not count, and neither does another month."""
    hooks = frozenset({"https://a.example/1", "https://a.example/2"})
    await harness.add("acme", monthly_quota=10, rate=RateLimit(5, 1), weight=2.5, webhooks=hooks)
    await harness.add("globex", disabled=True)
    await harness.charge("acme", 3)
    await harness.charge("acme", 4, "2026-04")
    await harness.add_key("acme")
    await harness.add_key("acme", revoked=True)
    found = await list_customers(harness.open_to_read, MARCH, 10)
    assert (found.at, found.month, found.has_more) == (MARCH, "2026-03", False)
    acme = CustomerSummary(
        cust_id="acme",
        disabled=False,
        monthly_quota=10,
        used=3,
        rate=RateLimit(5, 1),
        weight=2.5,
        keys=1,
        webhooks=2,
    )
    globex = CustomerSummary(
        cust_id="globex", disabled=True, monthly_quota=None, used=0, rate=None, weight=1.0, keys=0, webhooks=0
    )
    assert found.customers == [acme, globex]
    april = await list_customers(harness.open_to_read, MARCH + 3600, 10)
    assert (april.month, april.customers[0].used) == ("2026-04", 4)


async def test_list_is_bounded_and_says_that_there_are_more(harness: CustomerHarness) -> None:
    for name in ("b", "a", "c", "bb"):
        await harness.add(name)
    found = await list_customers(harness.open_to_read, MARCH, 2)
    assert ([customer.cust_id for customer in found.customers], found.has_more) == (["a", "b"], True)
    found = await list_customers(harness.open_to_read, MARCH, 2, "b")
    assert ([customer.cust_id for customer in found.customers], found.has_more) == (["b", "bb"], False)


async def test_one_customer_has_its_keys_without_their_hashes(harness: CustomerHarness) -> None:
    await harness.add("acme", strict=True)
    await harness.charge("acme", 3)
    key = await harness.add_key("acme", name="import job", last_used_at=7)
    await harness.store.add_producer("acme")
    found = await find_customer(harness.open_to_read, MARCH, "acme")
    assert found is not None
    assert (found.customer, found.month) == (Customer(cust_id="acme", strict=True), "2026-03")
    assert (found.used, found.has_own_queues) == (3, True)
    assert found.keys == [KeySummary(key_id=key.key_id, name="import job", created_at=5, last_used_at=7, revoked=False)]
    await harness.add("globex")
    other = await find_customer(harness.open_to_read, MARCH, "globex")
    assert other is not None
    assert (other.keys, other.has_own_queues) == ([], False)
    assert await find_customer(harness.open_to_read, MARCH, "acm") is None


async def test_store_is_closed_also_if_it_cannot_be_read(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store._file.change(lambda db: db.execute("INSERT INTO customer VALUES ('acme', '{')"))

    async def open_store() -> Store:
        return store

    with pytest.raises(StoreUnavailable, match="the record of customer acme cannot be read"):
        await list_customers(open_store, MARCH, 10)
    with pytest.raises(StoreUnavailable, match="is closed"):
        await find_customer(open_store, MARCH, "acme")
