"""How the store behaves if a real Aerospike server stalls, is killed, or restarts without its data."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from operator import methodcaller

import msgspec
import pytest

from ingest.domain.customers import ApiKey, Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Phase, Step
from ingest.domain.rates import PermitClaim
from ingest.store.aerospike.store import AerospikeStore
from tests.contract.test_store import claim, new_entry, read
from tests.servers import AerospikeServer, Unavailable, until_ready

MONTH = "2026-11"


@pytest.fixture
async def private_server() -> AsyncIterator[AerospikeServer]:
    """A server that only one test uses, so that it can be paused and killed."""
    try:
        server = await asyncio.to_thread(AerospikeServer, controllable=True)
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    yield server
    await asyncio.to_thread(server.stop)


async def test_accept_fails_while_server_stalls_and_writes_again_what_a_restart_has_lost(
    private_server: AerospikeServer,
) -> None:
    """StoreUnavailable is raised within 5 s; `accept` never returns without an effect."""
    store = await AerospikeStore.open(private_server.url, call_timeout=1.0)
    try:
        entries = await claim(store, [new_entry() for _ in range(50)])
        ids = [entry.id for entry in entries]
        private_server.pause()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.accept(entries)
        assert time.monotonic() - start < 5
        private_server.resume()
        await store.accept(entries)
        assert [entry and entry.phase for entry in await read(store, ids)] == [Phase.ACCEPTED] * 50
        await asyncio.to_thread(private_server.kill)
        with pytest.raises(StoreUnavailable):
            await store.accept(entries)
        await asyncio.to_thread(private_server.start)
        async with asyncio.timeout(30):
            while True:
                try:
                    await store.accept(entries)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.2)
        stored = await read(store, ids)
        assert [entry and entry.id for entry in stored] == ids
        assert [entry and entry.fingerprint for entry in stored] == [entry.fingerprint for entry in entries]
    finally:
        await store.close()


async def test_every_call_raises_store_unavailable_if_the_client_has_removed_its_node(
    private_server: AerospikeServer,
) -> None:
    """If the server hangs for some seconds, the client removes the node from its cluster.

    After that, the client neither raises an error nor marks the records, so calls could seem to be successful: claims
    would seem to be won, and quotas to be charged.
    """
    store = await AerospikeStore.open(private_server.url, call_timeout=1.0)
    charge = Charge("c", MONTH, 1, 1000)
    try:
        (entry,) = await claim(store, [new_entry()])
        assert await store.charge([charge]) == [True]
        private_server.pause()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.claim([new_entry()]),
            lambda: store.charge([charge]),
            lambda: store.apply([Change(Step.QUEUE, entry)]),
            lambda: store.apply([Change(Step.FORGET, entry)]),
            lambda: store.accept([entry]),
            lambda: store.read([entry.id]),
            lambda: store.used("c", MONTH),
            lambda: store.customer("c"),
            lambda: store.save_customer(Customer(cust_id="c")),
            lambda: store.revoke_key("key_1"),
            lambda: store.record_key_use(["key_1"], 1),
            lambda: store.claim_permits([PermitClaim("c", 1, 7, 1)]),
            store.ready,
        ]
        async with asyncio.timeout(60):
            took = 1.0
            while took > 0.2:  # a client that has removed its last node fails at once
                start = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await store.ready()
                took = time.monotonic() - start
        for call in calls:
            with pytest.raises(StoreUnavailable):
                await call()
        private_server.resume()
        await until_ready(store)
    finally:
        await store.close()


async def assert_used_becomes(store: AerospikeStore, cust_id: str, used: int) -> None:
    """Wait until the counter has the expected value; check that delayed writes do not change it within a second."""
    async with asyncio.timeout(30):
        while await store.used(cust_id, MONTH) != used:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    assert await store.used(cust_id, MONTH) == used


async def test_charge_that_timed_out_is_taken_back(private_server: AerospikeServer) -> None:
    """A server that stalled processes the charge after the caller got an error, so the store must take it back.

    This holds for a counter that exists and for a new one. Later charges are granted.
    """
    store = await AerospikeStore.open(private_server.url, call_timeout=0.5)
    charged_before, new = uuid.uuid4().hex, uuid.uuid4().hex
    try:
        assert await store.charge([Charge(charged_before, MONTH, 5, 100)]) == [True]
        private_server.pause()
        for cust_id in (charged_before, new):
            with pytest.raises(StoreUnavailable):
                await store.charge([Charge(cust_id, MONTH, 7, 100)])
        private_server.resume()
        await until_ready(store)
        await assert_used_becomes(store, charged_before, 5)
        await assert_used_becomes(store, new, 0)
        charges = [Charge(charged_before, MONTH, 95, 100), Charge(new, MONTH, 1, 100)]
        assert await store.charge(charges) == [True, True]
    finally:
        await store.close()


async def test_refund_during_a_stall_is_made_exactly_once(private_server: AerospikeServer) -> None:
    """The store tries it repeatedly until the server answers."""
    store = await AerospikeStore.open(private_server.url, call_timeout=0.5)
    charge = Charge(uuid.uuid4().hex, MONTH, 3, 100)
    try:
        for _ in range(5):
            assert await store.charge([charge]) == [True]
        private_server.pause()
        await store.refund([charge, charge])
        await asyncio.sleep(1.5)
        private_server.resume()
        await until_ready(store)
        await assert_used_becomes(store, charge.cust_id, 9)
    finally:
        await store.close()


async def test_used_equals_granted_minus_refunded_charges_after_several_stalls(private_server: AerospikeServer) -> None:
    store = await AerospikeStore.open(private_server.url, call_timeout=0.3)
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
        for seconds in (0.5, 5.0, 0.5):  # the store tries a charge for longer than 0.5 s and for less than 5 s
            await asyncio.sleep(random.uniform(0.2, 0.4))
            private_server.pause()
            await asyncio.sleep(seconds)
            private_server.resume()
            await until_ready(store)
        stop = True
        await asyncio.gather(*clients)
        assert failed
        assert kept
        await assert_used_becomes(store, charge.cust_id, kept)
    finally:
        await store.close()


async def test_record_of_a_key_is_the_same_in_versions_without_names(aerospike_url: str) -> None:
    """Those versions refuse a record with more bins, so a shim that is not upgraded yet could not read the key."""
    store = await AerospikeStore.open(aerospike_url)
    key = ApiKey(key_id=f"key_{uuid.uuid4().hex[:12]}", cust_id=uuid.uuid4().hex, key_hash=bytes(32), created_at=5)
    await store.save_key(msgspec.structs.replace(key, name="import job"))
    await store.record_key_use([key.key_id], 6)
    record_key = (store._namespace, "api_key", key.key_id)
    (record,) = await store._client.read([record_key])
    assert record is not None
    assert set(record[1]) == {"key_id", "cust_id", "key_hash", "created_at", "revoked"}
    await store._client.call(lambda client: client.remove((store._namespace, "key_info", key.key_id)))
    assert await store.keys(key.cust_id) == [key]
    await store.close()


async def test_counter_of_permits_expires_soon_after_its_window(aerospike_url: str) -> None:
    store = await AerospikeStore.open(aerospike_url)
    cust_id = uuid.uuid4().hex
    for seconds in (1, 60):
        await store.claim_permits([PermitClaim(cust_id, seconds, 7, 1)])
        key = (store._namespace, "rate", f"{cust_id}:{seconds}:7")
        _, metadata = await store._client.call(methodcaller("exists", key))
        assert 2 * seconds < metadata["ttl"] <= 2 * seconds + 60
    await store.close()


async def test_store_opens_while_aerospike_is_down_and_works_once_it_is_up(aerospike: AerospikeServer) -> None:
    if not aerospike.controllable:
        pytest.skip("these tests may not stop the given Aerospike server")
    aerospike.kill()
    try:
        store = await AerospikeStore.open(aerospike.url, call_timeout=1.0)
        with pytest.raises(StoreUnavailable):
            await store.ready()
    finally:
        aerospike.start()
    await until_ready(store)
    await store.close()
