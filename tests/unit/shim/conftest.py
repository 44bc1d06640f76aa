"""A running shim for the tests of this directory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.store.sqlite import SqliteStore
from tests.support.shim_harness import ShimHarness


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[tuple[SqliteStore, EmbeddedBroker]]:
    """The store and the broker of the shim."""
    store = await SqliteStore.open(tmp_path / "store.db")
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    yield store, broker
    await store.close()
    await broker.close()


@pytest.fixture
async def harness(parts: tuple[SqliteStore, EmbeddedBroker]) -> AsyncIterator[ShimHarness]:
    store, broker = parts
    async with ShimHarness(store, broker, await broker.publisher()) as running:
        yield running
