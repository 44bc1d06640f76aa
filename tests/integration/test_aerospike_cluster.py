"""A node of a real Aerospike cluster dies: only the records whose writes it handled are undecided."""

import asyncio
from collections.abc import Iterator

import pytest

from ingest.domain.ledger import UNDECIDED, Charge
from ingest.store.aerospike.store import AerospikeStore
from tests.contract.test_store import decided, new_entry
from tests.servers import AerospikeCluster, Unavailable

MONTH = "2026-11"


@pytest.fixture
def cluster() -> Iterator[AerospikeCluster]:
    try:
        cluster = AerospikeCluster()
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    yield cluster
    cluster.stop()


async def test_dead_node_leaves_the_records_of_the_other_nodes_decided(cluster: AerospikeCluster) -> None:
    """Each of three nodes handles the writes of about a third. A few seconds later the others have taken over."""
    store = await AerospikeStore.open(cluster.url)
    try:
        before = decided(await store.claim([new_entry() for _ in range(300)]))
        cluster.nodes[-1].kill()
        new = [new_entry() for _ in range(300)]
        charges = [Charge(entry.id, MONTH, 1, 1) for entry in new]
        # All at once: the others take over within seconds.
        claimed, accepted, granted = await asyncio.gather(store.claim(new), store.accept(before), store.charge(charges))
        for undecided in (claimed.count(UNDECIDED), accepted.count(False), granted.count(UNDECIDED)):
            assert 0 < undecided < 200
        async with asyncio.timeout(30):
            while UNDECIDED in (claimed := await store.claim(new)) or not all(await store.accept(before)):
                await asyncio.sleep(0.2)
        assert [entry.owner for entry in decided(claimed)] == ["me"] * 300
    finally:
        await store.close()
