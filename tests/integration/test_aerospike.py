"""What only a real Aerospike can do to us: it stalls, it dies and comes back empty."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Phase, Step
from ingest.store.aerospike.store import AerospikeStore
from tests.contract.test_store import new_entry
from tests.servers import AerospikeServer, Unavailable, until_ready

MONTH = "2026-11"


@pytest.fixture
async def stalling() -> AsyncIterator[AerospikeServer]:
    """A server of our own, to be paused."""
    try:
        server = await asyncio.to_thread(AerospikeServer)
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    if not server.controllable:
        pytest.skip("the Aerospike server given is not ours to disturb")
    yield server
    await asyncio.to_thread(server.stop)


async def test_accept_through_a_stall_and_a_loss(stalling: AerospikeServer) -> None:
    """While it stalls StoreUnavailable in time, never a silent success; what a restart has lost is written anew."""
    store = await AerospikeStore.open(stalling.url, call_timeout=1.0)
    try:
        entries = await store.claim([new_entry() for _ in range(50)])
        stalling.pause()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.accept(entries)
        assert time.monotonic() - start < 5
        stalling.resume()
        await store.accept(entries)
        assert {entry.phase for entry in await store.read([e.id for e in entries]) if entry} == {Phase.ACCEPTED}
        await asyncio.to_thread(stalling.kill)
        with pytest.raises(StoreUnavailable):
            await store.accept(entries)
        await asyncio.to_thread(stalling.start)
        async with asyncio.timeout(30):
            while True:
                try:
                    await store.accept(entries)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.2)
        found = await store.read([entry.id for entry in entries])
        assert [entry and (entry.id, entry.fingerprint) for entry in found] == [(e.id, e.fingerprint) for e in entries]
    finally:
        await store.close()


async def test_no_silent_success_while_the_client_has_given_its_nodes_up(stalling: AerospikeServer) -> None:
    """A server that hangs for seconds leaves the client without nodes: whatever is asked then is StoreUnavailable.

    The client neither raises nor marks the records then. Calls would pass as done: claims as won, quotas as charged.
    """
    store = await AerospikeStore.open(stalling.url, call_timeout=1.0)
    charge = Charge("c", "2026-11", 1, 1000)
    try:
        (entry,) = await store.claim([new_entry()])
        assert await store.charge([charge]) == [True]
        stalling.pause()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.claim([new_entry()]),
            lambda: store.charge([charge]),
            lambda: store.apply([Change(Step.QUEUE, entry)]),
            lambda: store.apply([Change(Step.FORGET, entry)]),
            lambda: store.accept([entry]),
            lambda: store.read([entry.id]),
            lambda: store.used("c", "2026-11"),
            lambda: store.customer("c"),
            lambda: store.save_customer(Customer(cust_id="c")),
            lambda: store.revoke_key("key_1"),
            store.ready,
        ]
        async with asyncio.timeout(60):
            took = 1.0
            while took > 0.2:  # until the client has none left: then it fails at once
                start = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await store.ready()
                took = time.monotonic() - start
        for call in calls:
            with pytest.raises(StoreUnavailable):
                await call()
        stalling.resume()
        await until_ready(store)
    finally:
        await store.close()


async def settled(store: AerospikeStore, cust_id: str, used: int) -> None:
    """The counter comes to what is expected, and stays there while late writes could still come."""
    async with asyncio.timeout(30):
        while await store.used(cust_id, MONTH) != used:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    assert await store.used(cust_id, MONTH) == used


async def test_a_charge_in_doubt_does_not_count(stalling: AerospikeServer) -> None:
    """A server that stalls works off later what was given up in the meantime. Nobody was told that it was granted, so
    nothing of it stays; a charge that was never tried before works all the same."""
    store = await AerospikeStore.open(stalling.url, call_timeout=0.5)
    old, new = uuid.uuid4().hex, uuid.uuid4().hex
    try:
        assert await store.charge([Charge(old, MONTH, 5, 100)]) == [True]
        stalling.pause()
        for cust_id in (old, new):
            with pytest.raises(StoreUnavailable):
                await store.charge([Charge(cust_id, MONTH, 7, 100)])
        stalling.resume()
        await until_ready(store)
        await settled(store, old, 5)
        await settled(store, new, 0)
        assert await store.charge([Charge(old, MONTH, 95, 100), Charge(new, MONTH, 1, 100)]) == [True, True]
    finally:
        await store.close()


async def test_a_refund_in_doubt_counts_once(stalling: AerospikeServer) -> None:
    """It is made once the server answers, however often it had to be tried."""
    store = await AerospikeStore.open(stalling.url, call_timeout=0.5)
    charge = Charge(uuid.uuid4().hex, MONTH, 3, 100)
    try:
        for _ in range(5):
            assert await store.charge([charge]) == [True]
        stalling.pause()
        await store.refund([charge, charge])
        await asyncio.sleep(1.5)
        stalling.resume()
        await until_ready(store)
        await settled(store, charge.cust_id, 9)
    finally:
        await store.close()


async def test_what_is_granted_through_stalls_is_what_is_used(stalling: AerospikeServer) -> None:
    """The law of it: whatever the server does, the counter comes to what was granted and not refunded."""
    store = await AerospikeStore.open(stalling.url, call_timeout=0.3)
    charge = Charge(uuid.uuid4().hex, MONTH, 1, 1_000_000)
    kept = failed = 0
    stop = False

    async def client() -> None:
        nonlocal kept, failed
        while not stop:
            try:
                assert await store.charge([charge]) == [True]
            except StoreUnavailable:
                failed += 1
                await asyncio.sleep(0.05)
                continue
            kept += 1
            if random.random() < 0.3:
                await store.refund([charge])
                kept -= 1

    try:
        clients = [asyncio.create_task(client()) for _ in range(8)]
        for seconds in (0.5, 5.0, 0.5):  # shorter and longer than charges are tried for
            await asyncio.sleep(random.uniform(0.2, 0.4))
            stalling.pause()
            await asyncio.sleep(seconds)
            stalling.resume()
            await until_ready(store)
        stop = True
        await asyncio.gather(*clients)
        assert failed
        assert kept
        await settled(store, charge.cust_id, kept)
    finally:
        await store.close()
