"""Fixtures of the tests of admission."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import AdmissionHarness
from tests.support.fakes import Clock


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[AdmissionHarness]:
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    yield AdmissionHarness(store, clock)
    await store.close()
