"""Charges over connections that are reset while Aerospike answers."""

import asyncio
import contextlib

import pytest

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Charge
from ingest.store.aerospike.store import AerospikeStore
from tests.chaos.store import Store
from tests.servers import Unavailable


async def test_charged_tasks_equal_granted_tasks_when_answers_are_lost() -> None:
    try:
        server = Store(1)
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    (proxy,) = server.proxies
    await proxy.start()
    await asyncio.to_thread(server.configure_and_start)
    store = await AerospikeStore.open(server.url, call_timeout=1.0)
    granted = 0

    async def charge() -> None:
        nonlocal granted
        attempts = 0
        # A client that has removed its node refuses every attempt at once, until it has connected again.
        while attempts < 150 or proxy.cuts <= 10:
            attempts += 1
            try:
                answers = await store.charge([Charge("c", "2026-11", 1, 10_000_000)])
                granted += answers == [True]
            except StoreUnavailable:
                await asyncio.sleep(0.01)

    async def reset_connections() -> None:
        while True:
            await asyncio.sleep(0.03)
            proxy.cut()

    resetting = asyncio.create_task(reset_connections())
    try:
        await asyncio.gather(*[charge() for _ in range(4)])
        resetting.cancel()
        assert granted > 0
        # Charges in doubt are taken back in the background, so the figures become equal only after a while.
        async with asyncio.timeout(20):
            used = 0
            while used != granted:
                with contextlib.suppress(StoreUnavailable):
                    used = await store.used("c", "2026-11")
                await asyncio.sleep(0.2)
    finally:
        resetting.cancel()
        await store.close()
        await proxy.stop()
        await asyncio.to_thread(server.stop)
