"""Nodes of a real Aerospike cluster are lost, stopped and separated: what was acknowledged is still stored."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import msgspec
import pytest

from ingest import settings
from ingest.backends import store_backend
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.findings import Finding
from ingest.domain.ledger import UNDECIDED, Charge, Entry, Phase
from ingest.store.aerospike.store import AerospikeStore
from tests.contract.test_store import new_entry
from tests.servers import AerospikeCluster, Unavailable
from tests.servers.aerospike_cluster import AerospikeNode
from tests.support.decided import decided
from tests.support.doctor_findings import OK, WARNING, errors, reports
from tests.support.summary import note_server

MONTH = "2026-11"
BATCH = 20
MIN_SIZE = 2


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[AerospikeCluster]:
    try:
        cluster = AerospikeCluster(min_size=MIN_SIZE)
    except Unavailable as error:
        note_server("Aerospike cluster", f"SKIPPED: {error}")
        pytest.skip(f"Aerospike cluster: {error}")
    cluster.start()
    note_server("Aerospike cluster", "asd on PATH")
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(shared_cluster: AerospikeCluster) -> AerospikeCluster:
    """The cluster with all its nodes."""
    for node in shared_cluster.nodes:
        if not node.process.group:
            node.start()
    shared_cluster.wait_until_whole()
    for node in shared_cluster.nodes:
        node.set_min_size(MIN_SIZE)
    return shared_cluster


class Load:
    """Claims, accepts and charges, a few at a time. It keeps what the store has acknowledged."""

    def __init__(self, store: AerospikeStore) -> None:
        self.cust_id = f"cust-{uuid.uuid4().hex}"
        self.claimed: dict[str, Entry] = {}
        self.accepted: dict[str, Entry] = {}
        self.granted = 0
        self._store = store

    async def run(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                claimed = [entry for entry in await self._store.claim([new_entry() for _ in range(BATCH)]) if entry]
                self.claimed |= {entry.id: entry for entry in claimed}
                (granted,) = await self._store.charge([Charge(self.cust_id, MONTH, len(claimed), 10**9)])
                self.granted += len(claimed) if granted else 0
                half = claimed[::2]
                accepted = await self._store.accept(half)
                self.accepted |= {entry.id: entry for entry, done in zip(half, accepted, strict=True) if done}
            await asyncio.sleep(0.1)

    async def progress(self, count: int = 100) -> None:
        """Wait until `count` more claims were acknowledged."""
        enough = len(self.claimed) + count
        async with asyncio.timeout(40):
            while len(self.claimed) < enough:
                await asyncio.sleep(0.05)

    async def missing(self) -> list[str]:
        """Return the ids of acknowledged claims that are not stored as they were acknowledged."""
        missing = []
        for entry, stored in zip(self.claimed.values(), await self._store.read(list(self.claimed)), strict=True):
            phase = Phase.ACCEPTED if entry.id in self.accepted else stored and stored.phase
            if not stored or stored.owner != entry.owner or stored.phase is not phase:
                missing.append(entry.id)
        return missing

    async def charged(self) -> int:
        """Return the charged tasks, when the charges in doubt have been taken back; wait up to ten seconds for that."""
        for _ in range(100):
            if await self._store.used(self.cust_id, MONTH) == self.granted:
                break
            await asyncio.sleep(0.1)
        return await self._store.used(self.cust_id, MONTH)


@contextlib.asynccontextmanager
async def load_on(cluster: AerospikeCluster, *, exact: bool = True) -> AsyncIterator[Load]:
    """Run a load; at the end, check that what was acknowledged is stored, and that exactly the granted is charged.

    Without `exact`, charges may be lost: in the moment in which a node has not noticed that the others are gone.
    """
    store = await AerospikeStore.open(cluster.url, call_timeout=1.0)
    load = Load(store)
    running = asyncio.create_task(load.run())
    try:
        await load.progress()
        yield load
        await asyncio.to_thread(cluster.wait_until_whole)
        await load.progress(BATCH)
        running.cancel()
        await asyncio.wait([running])
        assert await load.missing() == []
        assert not exact or await load.charged() == load.granted
    finally:
        running.cancel()
        await store.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.1)


def node_url(node: AerospikeNode) -> str:
    return f"aerospike://127.0.0.1:{node.port}/test"


def cluster_sizes(nodes: Sequence[AerospikeNode]) -> set[str]:
    """Return how many nodes each of these nodes sees, itself included."""
    return {node.statistics()["cluster_size"] for node in nodes}


def names(node: AerospikeNode, other: AerospikeNode) -> bool:
    """Return whether a node names the other one to its clients."""
    return f":{other.port}]" in node.info("peers-clear-alt")


async def findings_of(url: str) -> list[Finding]:
    return await store_backend(settings.load(broker_url="amqp://h/", store_url=url)).findings()


async def test_doctor_names_the_nodes_and_copies_and_a_missing_node(cluster: AerospikeCluster) -> None:
    """The last URL names one host more than there are nodes."""
    findings = await findings_of(cluster.url)
    assert any(finding.what.endswith(", 3 nodes") for finding in findings)
    assert reports(findings, OK, "2 copies of each record")
    assert reports(findings, OK, "min-cluster-size 2: the smaller side of a split cluster stops taking writes")
    assert errors(findings) == []
    findings = await findings_of(cluster.url.replace("/test", ",127.0.0.1:1/test"))
    assert reports(findings, WARNING, "INGEST_STORE_URL names 4 hosts, the cluster has 3 nodes")


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


@pytest.mark.parametrize("before_restart", [lambda node: None, AerospikeNode.wipe], ids=["with-data", "without-data"])
async def test_killed_node_loses_nothing_that_was_acknowledged(
    cluster: AerospikeCluster, before_restart: Callable[[AerospikeNode], None]
) -> None:
    async with load_on(cluster) as load:
        cluster.nodes[0].kill()
        await load.progress()
        before_restart(cluster.nodes[0])
        cluster.nodes[0].start()


async def test_node_that_sees_no_other_stops_serving_and_loses_no_entry(cluster: AerospikeCluster) -> None:
    """With min-cluster-size 2 of three nodes. Some ten seconds pass until then."""
    node, *others = cluster.nodes
    async with load_on(cluster, exact=False) as load:
        node.isolate(True)
        try:
            await until(lambda: cluster_sizes(others) == {"2"} and node.serves_nothing())
            written = node.writes()
            await load.progress()
            assert node.writes() == written
        finally:
            node.isolate(False)


async def test_what_both_sides_of_a_split_cluster_have_written_is_merged_entry_by_entry(
    cluster: AerospikeCluster,
) -> None:
    """Without min-cluster-size: every entry is kept, but of an entry or quota with two versions, one side's is lost."""
    node, *others = cluster.nodes
    customers = [f"cust-{uuid.uuid4().hex}" for _ in range(60)]
    store = await AerospikeStore.open(cluster.url)
    for customer in customers:
        await store.save_customer(Customer(cust_id=customer))
    for member in cluster.nodes:
        member.set_min_size(1)
    node.isolate(True)
    sides: list[AerospikeStore] = []
    try:
        await until(lambda: cluster_sizes(others) == {"2"} and cluster_sizes([node]) == {"1"})
        await until(lambda: not any(names(node, other) or names(other, node) for other in others))
        sides = [await AerospikeStore.open(node_url(node)), await AerospikeStore.open(node_url(others[0]))]
        async with asyncio.timeout(30):
            for side in sides:  # until the client knows which node has which records
                while UNDECIDED in await side.claim([new_entry() for _ in range(300)]):
                    await asyncio.sleep(0.2)
        shared = [new_entry() for _ in range(60)]
        own = [[new_entry() for _ in range(60)] for _ in sides]
        for number, (side, entries) in enumerate(zip(sides, own, strict=True)):
            claims = [*entries, *[msgspec.structs.replace(entry, owner=str(number)) for entry in shared]]
            assert [entry.generation for entry in decided(await side.claim(claims))] == [1] * 120
            for _ in range(3 + number):
                assert await side.charge([Charge(customers[0], MONTH, 1, 100)]) == [True]
        known = [[customer for customer in customers if await side.customer(customer)] for side in sides]
        assert 0 < len(known[0]) < len(known[1]) == len(customers)
    finally:
        node.isolate(False)
        for side in sides:
            await side.close()
    await asyncio.to_thread(cluster.wait_until_whole)
    assert all(await store.read([entry.id for entries in own for entry in entries]))
    kept = decided(await store.read([entry.id for entry in shared]))
    assert {entry.owner if entry else None for entry in kept} <= {"0", "1"}
    assert await store.used(customers[0], MONTH) == 4
    assert all([await store.customer(customer) for customer in customers])
    await store.close()
