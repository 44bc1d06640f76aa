"""Fixtures of the worker's tests; a module can have a `store` of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.domain.ports import Store
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock
from tests.support.worker_harness import ProcessorHarness


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteStore]:
    """A store with the `CUSTOMER` of the module."""
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    await store.save_customer(request.module.CUSTOMER)
    yield store
    await store.close()


@pytest.fixture
def harness(store: Store, clock: Clock) -> ProcessorHarness:
    return ProcessorHarness(store, clock=clock)
