"""Recording when keys were last used."""

import asyncio
from collections.abc import Sequence

import pytest

from ingest.domain.customers import Customer, key_id_of
from ingest.domain.errors import StoreUnavailable
from ingest.shim.auth import FRESH, Auth
from ingest.shim.key_uses import INTERVAL, KeyUses
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock
from tests.support.shim_harness import ShimHarness
from tests.support.tasks import TASK
from tests.unit.shim.conftest import harness, parts

__all__ = ["harness", "parts"]  # fixtures


class RecordingRegistry(SqliteStore):
    """Knows every key and counts the calls. Records hang while `hangs`, and fail while `fails`."""

    hangs = False
    fails = False

    def __init__(self) -> None:
        self.lookups = 0
        self.records: list[tuple[list[str], int]] = []

    async def customer_by_key(self, key_hash: bytes) -> Customer | None:
        self.lookups += 1
        return Customer(cust_id="c")

    async def record_key_use(self, key_ids: Sequence[str], used_at: int) -> None:
        self.records.append((list(key_ids), used_at))
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            raise StoreUnavailable("scripted")


@pytest.fixture
def registry() -> RecordingRegistry:
    return RecordingRegistry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_thousand_requests_within_an_hour_make_one_record(registry: RecordingRegistry, clock: Clock) -> None:
    auth = Auth(registry, clock=clock)
    for _ in range(1000):
        await auth.customer(b"Bearer key")
        clock.now += INTERVAL / 1000
    await auth.close()
    assert len(registry.records) == 1
    clock.now += FRESH
    await auth.customer(b"Bearer key")
    await auth.close()
    assert len(registry.records) == 2


async def test_requests_that_the_cache_answers_make_no_call_of_the_store(
    registry: RecordingRegistry, clock: Clock
) -> None:
    auth = Auth(registry, clock=clock)
    for _ in range(1000):
        await auth.customer(b"Bearer key")
    await auth.close()
    assert (registry.lookups, len(registry.records)) == (1, 1)


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
async def test_request_neither_waits_nor_fails_if_its_record_does(
    registry: RecordingRegistry, clock: Clock, trouble: str
) -> None:
    setattr(registry, trouble, True)
    auth = Auth(registry, clock=clock)
    for _ in range(3):
        async with asyncio.timeout(5):
            assert (await auth.customer(b"Bearer key")).cust_id == "c"
        clock.now += FRESH
    async with asyncio.timeout(5):
        await auth.close()
    assert len(registry.records) == 1


async def test_keys_that_come_together_are_recorded_together(registry: RecordingRegistry, clock: Clock) -> None:
    uses = KeyUses(registry, clock, clock)
    hashes = [bytes([number]) * 32 for number in range(20)]
    for key_hash in hashes:
        uses.note(key_hash)
    await uses.close()
    assert registry.records == [([key_id_of(key_hash) for key_hash in hashes], int(clock.now * 1000))]


async def test_unknown_key_is_not_recorded(harness: ShimHarness) -> None:
    """But the key that is used is, within a moment."""
    (key,) = await harness.store.keys("c")
    assert key.last_used_at is None
    async with harness.client_of("unknown") as stranger:
        assert (await stranger.post("/v1/tasks", json=TASK)).status_code == 401
    assert (await harness.client.post("/v1/tasks", json=TASK)).status_code == 202
    async with asyncio.timeout(5):
        while (await harness.store.keys("c"))[0].last_used_at is None:
            await asyncio.sleep(0.01)
