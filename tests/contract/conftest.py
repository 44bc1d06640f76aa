"""The stores that the contract tests of this folder run on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.domain.ports import Store
from ingest.store.aerospike.store import AerospikeStore
from ingest.store.sqlite import SqliteStore
from ingest.telemetry.prometheus import PrometheusMeter
from ingest.telemetry.store import MeteredStore


@pytest.fixture(params=["sqlite", "aerospike", "sqlite, metered"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store: Store
    if request.param == "sqlite":
        store = await SqliteStore.open(tmp_path / "store.db")
    elif "metered" in request.param:
        store = MeteredStore(await SqliteStore.open(tmp_path / "store.db"), PrometheusMeter())
    else:
        store = await AerospikeStore.open(request.getfixturevalue("aerospike_url"))
    yield store
    await store.close()
