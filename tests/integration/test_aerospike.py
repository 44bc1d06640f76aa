"""What only a real Aerospike can do to us: it stalls, it dies and comes back empty."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Phase, Step
from ingest.store.aerospike import AerospikeStore
from tests.contract.test_store import new_entry
from tests.servers import AerospikeServer, Unavailable, until_ready


async def test_accept_through_a_stall_and_a_loss() -> None:
    """While it stalls StoreUnavailable in time, never a silent success; what a restart has lost is written anew."""
    try:
        server = await asyncio.to_thread(AerospikeServer)
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    if not server.controllable:
        pytest.skip("the Aerospike server given is not ours to disturb")
    store = await AerospikeStore.open(server.url, call_timeout=1.0)
    try:
        entries = await store.claim([new_entry() for _ in range(50)])
        server.pause()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.accept(entries)
        assert time.monotonic() - start < 5
        server.resume()
        await store.accept(entries)
        assert {entry.phase for entry in await store.read([e.id for e in entries]) if entry} == {Phase.ACCEPTED}
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailable):
            await store.accept(entries)
        await asyncio.to_thread(server.start)
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
        await asyncio.to_thread(server.stop)


async def test_no_silent_success_while_the_client_has_given_its_nodes_up() -> None:
    """A server that hangs for seconds leaves the client without nodes: whatever is asked then is StoreUnavailable.

    The client neither raises nor marks the records then. Calls would pass as done: claims as won, quotas as charged.
    """
    try:
        server = await asyncio.to_thread(AerospikeServer)
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    if not server.controllable:
        pytest.skip("the Aerospike server given is not ours to disturb")
    store = await AerospikeStore.open(server.url, call_timeout=1.0)
    charge = Charge("c", "2026-11", 1, 1000)
    try:
        (entry,) = await store.claim([new_entry()])
        assert await store.charge([charge]) == [True]
        server.pause()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.claim([new_entry()]),
            lambda: store.charge([charge]),
            lambda: store.refund([charge]),
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
        server.resume()
        await until_ready(store)
    finally:
        await store.close()
        await asyncio.to_thread(server.stop)
