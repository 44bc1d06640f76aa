"""Authentication while the store hangs."""

import asyncio

import pytest

from ingest.domain.customers import Customer
from ingest.shim.auth import FRESH, Auth
from ingest.shim.problems import Problem
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock


class HangingRegistry(SqliteStore):
    """Look-ups of keys do not end while `hangs` is true."""

    hangs = False
    customer_now = Customer(cust_id="c")

    def __init__(self) -> None:
        """There is no file."""

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        if self.hangs:
            await asyncio.Event().wait()
        return self.customer_now


async def test_look_up_that_exceeds_the_deadline_is_answered_503() -> None:
    registry = HangingRegistry()
    registry.hangs = True
    with pytest.raises(Problem) as answer:
        await asyncio.wait_for(Auth(registry, deadline=0.05).customer(b"Bearer key"), 5)
    assert answer.value.status == 503


async def test_known_key_is_valid_although_its_look_up_exceeds_the_deadline() -> None:
    registry, clock = HangingRegistry(), Clock()
    auth = Auth(registry, deadline=0.05, clock=clock)
    await auth.customer(b"Bearer key")
    registry.hangs = True
    clock.now += FRESH
    assert (await asyncio.wait_for(auth.customer(b"Bearer key"), 5)).cust_id == "c"


async def test_disabling_takes_effect_once_the_cached_customer_is_no_longer_fresh() -> None:
    registry, clock = HangingRegistry(), Clock()
    auth = Auth(registry, clock=clock)
    await auth.customer(b"Bearer key")
    registry.customer_now = Customer(cust_id="c", disabled=True)
    clock.now += FRESH - 0.01
    await auth.customer(b"Bearer key")
    clock.now += 0.01
    with pytest.raises(Problem, match="the customer is disabled") as answer:
        await auth.customer(b"Bearer key")
    assert answer.value.status == 403
