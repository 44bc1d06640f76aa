"""What only a real Aerospike can do to us: it stalls, it dies and comes back empty."""

import asyncio
import time

import pytest

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Phase
from ingest.store.aerospike import AerospikeStore
from tests.contract.test_store import new_entry
from tests.servers import AerospikeServer, Unavailable


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
