"""When the console reads lists of customers, and how many it keeps."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.console.customers import MAX_AGE, Customers
from ingest.domain.errors import StoreUnavailable
from ingest.operations.customers import CustomerList
from ingest.store.sqlite import SqliteStore
from tests.support.customer_harness import CustomerHarness
from tests.support.fakes import Clock


class Harness(CustomerHarness):
    """A store, and the console's customers in it: at most three in one list."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        super().__init__(store, clock)
        self.monotonic = Clock()
        self.customers = Customers(self.open_to_read, clock, self.monotonic, patience=5, max_listed=3)

    async def names(self, prefix: str = "") -> list[str]:
        found = await self.customers.look(prefix)
        assert found is not None
        return [customer.cust_id for customer in found.customers]


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = await Harness.open(tmp_path)
    for name in ("acme", "acme-2", "globex"):
        await harness.add(name)
    yield harness
    await harness.customers.close()
    await harness.store.close()


async def test_list_is_read_again_only_if_it_is_old(harness: Harness) -> None:
    assert await harness.names() == ["acme", "acme-2", "globex"]
    await harness.charge("acme", 1)
    harness.monotonic.now += MAX_AGE - 1
    await harness.names()
    assert harness.opened == 1
    harness.monotonic.now += 1
    found = await harness.customers.look()
    assert found is not None
    assert (harness.opened, found.customers[0].used, found.at) == (2, 1, harness.clock())


async def test_complete_list_answers_for_every_beginning_of_an_id(harness: Harness) -> None:
    await harness.names()
    assert await harness.names("acme") == ["acme", "acme-2", "globex"]
    assert harness.opened == 1


async def test_customers_beyond_the_limit_are_found_by_the_beginning_of_their_id(harness: Harness) -> None:
    await harness.add("abc")
    assert await harness.names() == ["abc", "acme", "acme-2"]
    assert await harness.names("g") == ["globex"]
    assert await harness.names("g") == ["globex"]
    assert harness.opened == 2


async def test_few_lists_are_kept(harness: Harness) -> None:
    await harness.add("abc")
    for prefix in ("g", "a", "b", "c", "d"):
        await harness.names(prefix)
    assert harness.opened == 5
    await harness.names("d")
    assert harness.opened == 5
    await harness.names("g")
    assert harness.opened == 6


async def test_page_does_not_wait_for_a_slow_store_if_there_is_an_older_list(harness: Harness) -> None:
    first = await harness.customers.look()
    harness.monotonic.now += MAX_AGE
    harness.gate.clear()
    async with asyncio.timeout(2):
        assert await harness.customers.look() is first
        assert await harness.customers.look() is first
    assert harness.opened == 2
    harness.gate.set()
    while harness.customers._task is not None:
        await asyncio.sleep(0)
    assert await harness.customers.look() is not first


async def test_first_list_of_a_slow_store_is_awaited_only_for_a_while(harness: Harness) -> None:
    harness.gate.clear()
    impatient = Customers(harness.open_to_read, patience=0.01)
    assert await impatient.look() is None
    assert impatient.failure == ""
    await impatient.close()
    harness.gate.set()


async def test_only_one_list_is_read_at_a_time(harness: Harness) -> None:
    harness.gate.clear()
    looks = [asyncio.create_task(harness.customers.look(prefix)) for prefix in ("g", "a", "g")]
    await asyncio.sleep(0.01)
    assert harness.opened == 1
    harness.gate.set()
    found: list[CustomerList | None] = await asyncio.gather(*looks)
    assert [[customer.cust_id for customer in listing.customers] for listing in found if listing] == [
        ["globex"],
        ["acme", "acme-2"],
        ["globex"],
    ]
    assert harness.opened == 2


async def test_failure_is_said_the_older_list_stays_and_the_next_page_tries_again(harness: Harness) -> None:
    harness.failure = StoreUnavailable("no connection")
    assert await harness.customers.look() is None
    assert harness.customers.failure == "no connection"
    harness.failure = None
    first = await harness.customers.look()
    assert (first is not None, harness.customers.failure) == (True, "")
    harness.monotonic.now += MAX_AGE
    harness.failure = StoreUnavailable("no connection")
    assert await harness.customers.look() is first
    assert harness.customers.failure == "no connection"


async def test_odd_answer_of_a_server_is_a_failure_like_others(harness: Harness) -> None:
    harness.failure = KeyError("cust_id")
    with capture_logs() as logs:
        assert await harness.customers.look() is None
    assert harness.customers.failure == "KeyError, see the log of the console"
    assert [entry["event"] for entry in logs] == ["customers_not_read"]


async def test_close_ends_a_reading(harness: Harness) -> None:
    harness.gate.clear()
    reading = asyncio.create_task(harness.customers.look())
    while not harness.opened:
        await asyncio.sleep(0)
    await harness.customers.close()
    assert await reading is None
