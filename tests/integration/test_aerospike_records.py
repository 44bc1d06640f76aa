"""Trouble with one record of a real Aerospike server does not fail the other records of the same call."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aerospike
import msgspec
import pytest

from ingest.admission import Admission, Request, Verdict
from ingest.domain.customers import ApiKey, Customer, key_id_of
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import UNDECIDED, Change, Charge, Step
from ingest.domain.ports import Store
from ingest.domain.submissions import batch_submission, task_submission
from ingest.operations.customers import find_customer
from ingest.shim.pipeline import SubmissionPipeline
from ingest.store.aerospike.store import AerospikeStore
from tests.contract.test_store import new_entry
from tests.servers import AerospikeServer, Unavailable
from tests.support.fakes import ScriptedPublisher
from tests.support.tasks import TASK

CUSTOMER = Customer(cust_id="c", monthly_quota=10_000)
MONTH = "2026-11"
MAX_SIZE = 16_384
"""Bytes of a record."""
LARGE = {index: f"tsk_{index:026}" for index in range(1000)}
"""Ids of keyed items that make the record of an entry larger than the server accepts."""


@pytest.fixture(scope="module")
def server() -> Iterator[AerospikeServer]:
    """A server that refuses records above 16 KiB, and a second change of a record while one is in progress."""
    try:
        server = AerospikeServer(namespace=f"max-record-size {MAX_SIZE}\ntransaction-pending-limit 1")
    except Unavailable as error:
        pytest.skip(f"Aerospike: {error}")
    yield server
    server.stop()


@pytest.fixture
async def store(server: AerospikeServer) -> AsyncIterator[AerospikeStore]:
    store = await AerospikeStore.open(server.url)
    yield store
    await store.close()


def put(server: AerospikeServer, set_name: str, key: str, bins: dict[str, object]) -> None:
    """Change bins of a record."""
    host, port = server.url.removeprefix("aerospike://").partition("/")[0].split(":")
    client: Any = aerospike.client({"hosts": [(host, int(port))]})
    client.put(("test", set_name, key), bins)
    client.close()


def fill(server: AerospikeServer, set_name: str, key: str) -> None:
    """Add a bin to a record, so that the next write that makes it longer is refused."""
    host, port = server.url.removeprefix("aerospike://").partition("/")[0].split(":")
    client: Any = aerospike.client({"hosts": [(host, int(port))]})
    client.connect()
    for size in range(MAX_SIZE, 0, -1):
        with contextlib.suppress(aerospike.exception.RecordTooBig):
            client.put(("test", set_name, key), {"padding": "x" * size})
            break
    client.close()


async def test_299_of_300_requests_are_admitted_if_the_record_of_one_is_too_large(store: AerospikeStore) -> None:
    """A batch of 1,000 keyed items has a record of about 35 KiB."""
    items = [TASK | {"idempotency_key": f"i{number}"} for number in range(1000)]
    requests = [Request(task_submission(TASK, "c", frozenset(), f"k{n}"), CUSTOMER) for n in range(299)]
    requests.insert(150, Request(batch_submission({"tasks": items}, "c", frozenset(), "large"), CUSTOMER))
    publisher = ScriptedPublisher()
    decisions = await SubmissionPipeline(Admission(store), publisher).run(requests)
    assert [index for index, decision in enumerate(decisions) if decision.verdict is not Verdict.ADMITTED] == [150]
    assert decisions[150].verdict is Verdict.UNDECIDED
    assert len(publisher.sent) == 299


async def test_only_the_large_one_of_two_records_is_undecided(server: AerospikeServer, store: AerospikeStore) -> None:
    """The same holds for a call with the large record alone: the store is not down."""
    small, full, large = new_entry(), new_entry(), new_entry(task_count=1000, keyed_item_ids=LARGE)
    claimed, claimed_full, undecided = await store.claim([small, full, large])
    assert undecided is UNDECIDED
    assert await store.claim([large]) == [UNDECIDED]
    assert claimed
    assert claimed_full
    fill(server, "ledger", full.id)
    full_entry = msgspec.structs.replace(claimed_full, generation=2)
    release = [Change(Step.RELEASE, msgspec.structs.replace(entry, charged=1)) for entry in (claimed, full_entry)]
    assert [bool(result) for result in await store.apply(release)] == [True, False]
    assert await store.apply(release[1:]) == [UNDECIDED]
    assert await store.accept([large, small, full]) == [False, True, True]
    assert await store.accept([large]) == [False]


async def test_concurrent_claims_of_a_busy_entry_agree_on_the_winner(store: AerospikeStore) -> None:
    """The server refuses most of these writes, because it processes one at a time. Those are read back."""
    rivals = [new_entry(f"o{number}", id="tsk_busy") for number in range(200)]
    results = await asyncio.gather(*[store.claim([rival, new_entry()]) for rival in rivals])
    assert len({busy.owner for busy, _ in results if busy}) == 1
    assert UNDECIDED not in [other for _, other in results]


async def test_charge_of_one_customer_is_undecided_and_those_of_others_are_granted(
    server: AerospikeServer, store: AerospikeStore
) -> None:
    """The counter's record has no room for the receipt of another process. An undecided charge is never counted."""
    full = Charge("full", MONTH, 1, 100)
    other_process = await AerospikeStore.open(server.url)
    assert await other_process.charge([full]) == [True]
    await other_process.close()
    fill(server, "quota", f"full:{MONTH}")
    charges = [full, *[Charge(f"other{number}", MONTH, 1, 100) for number in range(99)]]
    assert await store.charge(charges) == [UNDECIDED, *[True] * 99]
    assert await store.charge([full]) == [UNDECIDED]
    assert await store.used("full", MONTH) == 1


async def test_damaged_record_of_a_customer_is_named_and_looks_like_an_unavailable_store(
    server: AerospikeServer, store: AerospikeStore
) -> None:
    """So its submissions wait instead of being rejected. Other customers are not affected."""
    for cust_id in ("damaged", "whole"):
        await store.save_customer(Customer(cust_id=cust_id))
    await store.save_key(ApiKey(key_id=key_id_of(b"hash"), cust_id="damaged", key_hash=b"hash", created_at=1))
    put(server, "customer", "damaged", {"retention": "a week"})
    reads: list[Callable[[], Awaitable[object]]] = [
        lambda: store.customer("damaged"),
        lambda: store.customer_by_key(b"hash"),
        store.customers,
    ]
    for read in reads:
        with pytest.raises(StoreUnavailable, match="the record of customer damaged cannot be read: "):
            await read()
    assert await store.customer("whole") == Customer(cust_id="whole")
    await store.add_producer("damaged")
    assert (await store.producers())["damaged"] == 1.0
    await store.remove_producer("damaged")


async def test_customer_is_not_mistaken_for_another_one(server: AerospikeServer) -> None:
    """Aerospike's client ends a key at a NUL, which a person can write in the address of a page."""
    store = await AerospikeStore.open(server.url)
    await store.save_customer(Customer(cust_id="acme"))
    await store.close()

    async def open_store() -> Store:
        return await AerospikeStore.open(server.url)

    assert await find_customer(open_store, 0, "acme") is not None
    assert await find_customer(open_store, 0, "acme\0x") is None
