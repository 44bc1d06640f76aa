"""What several tests of operations use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import CUSTOMER
from tests.support.fakes import Clock
from tests.support.find_harness import FindHarness


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[FindHarness]:
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    await store.save_customer(CUSTOMER)
    yield FindHarness(store, clock)
    await store.close()
