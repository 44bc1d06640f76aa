"""What every store must do: the sentences of `domain.ports`, one test each."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from ingest.domain.customers import ApiKey, Customer, hash_api_key, key_id_of, new_api_key
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Charge, Entry, Phase, Step
from ingest.domain.ports import Store
from ingest.store.aerospike.store import AerospikeStore
from ingest.store.sqlite import SqliteStore
from ingest.telemetry.prometheus import PrometheusMeter
from ingest.telemetry.store import MeteredStore
from tests.servers import AerospikeServer, until_ready


@pytest.fixture(params=["sqlite", "aerospike", "sqlite, counted"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Each store in turn."""
    opened: Store
    if request.param == "sqlite":
        opened = await SqliteStore.open(tmp_path / "store.db")
    elif "counted" in request.param:
        opened = MeteredStore(await SqliteStore.open(tmp_path / "store.db"), PrometheusMeter())
    else:
        opened = await AerospikeStore.open(request.getfixturevalue("aerospike_url"))
    yield opened
    await opened.close()


def new_entry(owner: str = "me", **changes: object) -> Entry:
    fresh = Entry(
        id=f"tsk_{uuid.uuid4().hex}",
        cust_id="c",
        created_at=1_775_000_000_123,
        fingerprint=bytes(range(32)),
        retention=3600,
        owner=owner,
        lease=1_775_000_030_123,
        origin="m-1",
    )
    return msgspec.structs.replace(fresh, **changes)


async def test_claim_creates_and_returns_what_is_stored(store: Store) -> None:
    """A first claim wins and reads back the same, with a generation."""
    entry = new_entry()
    (claimed,) = await store.claim([entry])
    assert claimed == msgspec.structs.replace(entry, generation=claimed.generation)
    assert claimed.generation > 0
    assert await store.read([entry.id]) == [claimed]


async def test_claim_of_an_existing_id_returns_the_other(store: Store) -> None:
    """The loser sees the winner's owner, and nothing changes."""
    entry = new_entry("first")
    (winner,) = await store.claim([entry])
    (seen,) = await store.claim([msgspec.structs.replace(entry, owner="second", created_at=1)])
    assert seen == winner


async def test_claims_of_one_call_may_repeat_an_id(store: Store) -> None:
    """Of equal ids in one call one wins, and all positions show it."""
    entry = new_entry("a")
    other = new_entry("x")
    rival = msgspec.structs.replace(entry, owner="b")
    one, two, three = await store.claim([entry, other, rival])
    assert one == three
    assert one.owner in ("a", "b")
    assert two.owner == "x"


async def test_two_hundred_concurrent_claims_have_one_winner(store: Store) -> None:
    """Atomic: one owner, seen by all."""
    entry = new_entry()
    rivals = [msgspec.structs.replace(entry, owner=f"o{i}") for i in range(200)]
    seen = await asyncio.gather(*[store.claim([rival]) for rival in rivals])
    assert len({found[0].owner for found in seen}) == 1


async def test_a_batch_entry_keeps_its_ids(store: Store) -> None:
    """task_count and a thousand own ids come back as they were."""
    entry = new_entry(task_count=1000, keyed_item_ids={i: f"tsk_{i}" for i in range(0, 1000, 3)})
    await store.claim([entry])
    (found,) = await store.read([entry.id])
    assert found is not None
    assert (found.task_count, found.keyed_item_ids) == (1000, entry.keyed_item_ids)


async def test_long_lists_keep_their_order(store: Store) -> None:
    """3,000 claims in one call, half of them taken already."""
    entries = [new_entry(f"o{i}") for i in range(3000)]
    await store.claim(entries[::2])
    claimed = await store.claim([msgspec.structs.replace(entry, owner="late") for entry in entries])
    assert [entry.id for entry in claimed] == [entry.id for entry in entries]
    assert [entry.owner for entry in claimed] == ["late" if i % 2 else f"o{i}" for i in range(3000)]


async def test_unknown_ids_read_as_none(store: Store) -> None:
    """None where there is nothing, in place."""
    entry = new_entry()
    await store.claim([entry])
    missing, found = await store.read(["tsk_nothing", entry.id])
    assert missing is None
    assert found is not None


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Step.TAKE_OVER, {"owner": "new", "lease": 99, "origin": "m-2", "phase": Phase.CLAIMED}),
        (Step.QUEUE, {"phase": Phase.QUEUED, "lease": 0}),
        (Step.RELEASE, {"phase": Phase.CLAIMED, "lease": 0, "charged": 7}),
    ],
)
async def test_a_step_is_written_and_returned(store: Store, step: Step, expected: dict[str, object]) -> None:
    """What a step returns is what is stored, one generation on."""
    (claimed,) = await store.claim([new_entry()])
    seen = claimed
    if step is Step.TAKE_OVER:
        seen = msgspec.structs.replace(claimed, owner="new", lease=99, origin="m-2")
    elif step is Step.RELEASE:
        seen = msgspec.structs.replace(claimed, charged=7)
    (after,) = await store.apply([Change(step, seen)])
    assert after is not None
    assert {name: getattr(after, name) for name in expected} == expected
    assert after.generation != claimed.generation
    assert await store.read([claimed.id]) == [after]


async def test_a_batch_is_taken_over_with_another_body(store: Store) -> None:
    """What the body decides is stored anew; the rest stays."""
    (dead,) = await store.claim([new_entry(task_count=3, keyed_item_ids={1: "tsk_1"}, charged=2)])
    changes = {"fingerprint": bytes(32), "task_count": 5, "keyed_item_ids": {0: "tsk_0", 4: "tsk_4"}, "owner": "new"}
    (after,) = await store.apply([Change(Step.TAKE_OVER, msgspec.structs.replace(dead, **changes))])
    assert after == msgspec.structs.replace(dead, **changes, generation=after.generation if after else 0)
    assert await store.read([dead.id]) == [after]


@pytest.mark.parametrize("step", [Step.TAKE_OVER, Step.QUEUE, Step.RELEASE, Step.FORGET])
async def test_a_step_on_another_generation_does_nothing(store: Store, step: Step) -> None:
    """Whoever saw an older entry changes nothing and is told so."""
    (old,) = await store.claim([new_entry()])
    (new,) = await store.apply([Change(Step.QUEUE, old)])
    assert await store.apply([Change(step, old)]) == [None]
    assert await store.read([old.id]) == [new]


async def test_forget_deletes(store: Store) -> None:
    """FORGET returns what it deleted; the id is free again."""
    (claimed,) = await store.claim([new_entry()])
    assert await store.apply([Change(Step.FORGET, claimed)]) == [claimed]
    assert await store.read([claimed.id]) == [None]


def settled(entry: Entry | None) -> Entry:
    """As it was, but accepted."""
    assert entry is not None
    return msgspec.structs.replace(entry, phase=Phase.ACCEPTED, lease=0, generation=0)


async def test_accept_whatever_is_stored(store: Store) -> None:
    """Claimed, queued meanwhile, taken over by another, of several retentions: accepted, twice as well as once."""
    claimed = await store.claim([new_entry(retention=retention) for retention in (3600, 3600, 7200)])
    await store.apply([Change(Step.QUEUE, claimed[1])])
    (rival,) = await store.apply([Change(Step.TAKE_OVER, msgspec.structs.replace(claimed[2], owner="new"))])
    await store.accept(claimed)
    once = await store.read([entry.id for entry in claimed])
    assert [settled(entry) for entry in once] == [settled(entry) for entry in (claimed[0], claimed[1], rival)]
    assert [entry.phase for entry in once if entry] == [Phase.ACCEPTED] * 3
    await store.accept(claimed)
    assert [settled(entry) for entry in await store.read([entry.id for entry in claimed])] == [
        settled(entry) for entry in once
    ]


async def test_accept_heals_a_lost_entry(store: Store) -> None:
    """Lost after it was seen, or never seen: the whole entry is written, also beside one that is still there."""
    gone, there = await store.claim([new_entry(), new_entry()])
    await store.apply([Change(Step.FORGET, gone)])
    unseen = new_entry(task_count=2, keyed_item_ids={1: "tsk_1"})
    entries = [gone, there, unseen]
    await store.accept(entries)
    found = await store.read([entry.id for entry in entries])
    assert [entry and entry.phase for entry in found] == [Phase.ACCEPTED] * 3
    assert [settled(entry) for entry in found] == [settled(entry) for entry in entries]


async def test_an_unseen_entry_replaces_what_is_stored(store: Store) -> None:
    """Generation 0 says that the caller knows better: every field is the caller's."""
    (old,) = await store.claim([new_entry()])
    better = msgspec.structs.replace(old, fingerprint=bytes(32), owner="", generation=0)
    await store.accept([better])
    assert [settled(entry) for entry in await store.read([old.id])] == [settled(better)]


async def test_only_one_of_many_takes_over(store: Store) -> None:
    """The generation check lets one rival through."""
    (dead,) = await store.claim([new_entry()])
    rivals = [Change(Step.TAKE_OVER, msgspec.structs.replace(dead, owner=f"o{i}")) for i in range(50)]
    results = await asyncio.gather(*[store.apply([rival]) for rival in rivals])
    assert sum(result != [None] for result in results) == 1


async def test_an_entry_ends_after_its_retention(store: Store) -> None:
    """Once expired it reads as absent and can be claimed anew."""
    entry = new_entry(retention=1)
    await store.claim([entry])
    async with asyncio.timeout(10):
        while (await store.read([entry.id]))[0] is not None:
            await asyncio.sleep(0.1)
    (again,) = await store.claim([msgspec.structs.replace(entry, owner="later")])
    assert again.owner == "later"


async def test_charges_never_exceed_the_limit(store: Store) -> None:
    """Of 60 concurrent charges of 3 under a limit of 100, 33 are granted; used says 99."""
    charge = Charge(uuid.uuid4().hex, "2026-11", 3, 100)
    results = await asyncio.gather(*[store.charge([charge]) for _ in range(60)])
    assert sum(result == [True] for result in results) == 33
    assert await store.used(charge.cust_id, "2026-11") == 99


async def test_charges_are_per_customer_and_month(store: Store) -> None:
    """Each result stands for its own charge; a first charge above the limit is refused too."""
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    charges = [Charge(mine, "2026-11", 2, 2), Charge(other, "2026-11", 5, 4), Charge(mine, "2026-12", 1, 2)]
    assert await store.charge(charges) == [True, False, True]
    assert await store.charge([Charge(mine, "2026-11", 1, 2)]) == [False]
    assert (await store.used(mine, "2026-11"), await store.used(other, "2026-11")) == (2, 0)


async def test_refund_takes_back_and_stops_at_zero(store: Store) -> None:
    """A refund makes room again and never makes credit."""
    charge = Charge(uuid.uuid4().hex, "2026-11", 2, 2)
    await store.charge([charge])
    await store.refund([charge])
    await store.refund([charge])
    assert await store.used(charge.cust_id, "2026-11") == 0
    assert await store.charge([charge]) == [True]


async def test_customers_are_saved_whole(store: Store) -> None:
    """A later save replaces all of it, an unlimited quota included."""
    name = f"c-{uuid.uuid4().hex[:8]}"
    first = Customer(cust_id=name, monthly_quota=5, strict=True, webhooks=frozenset({"https://a.example/ü"}))
    await store.save_customer(first)
    assert await store.customer(name) == first
    second = Customer(cust_id=name, retention=60)
    await store.save_customer(second)
    assert await store.customer(name) == second
    assert second in await store.customers()
    assert await store.customer("nobody") is None


async def test_a_key_leads_to_its_customer_until_revoked(store: Store) -> None:
    """Lookup is by hash; a revoked or unknown key leads nowhere."""
    customer = Customer(cust_id=f"c-{uuid.uuid4().hex[:8]}")
    hashed = hash_api_key(new_api_key())
    key = ApiKey(key_id=key_id_of(hashed), cust_id=customer.cust_id, key_hash=hashed, created_at=5)
    await store.save_customer(customer)
    await store.save_key(key)
    assert await store.keys(customer.cust_id) == [key]
    assert await store.customer_by_key(hashed) == customer
    assert await store.customer_by_key(hash_api_key(new_api_key())) is None
    assert await store.revoke_key(key.key_id)
    assert await store.customer_by_key(hashed) is None
    assert not await store.revoke_key("key_000000000000")


async def test_ready_and_empty_lists(store: Store) -> None:
    """A working store is ready; empty lists are fine everywhere."""
    await store.ready()
    assert await store.claim([]) == []
    assert await store.read([]) == []
    assert await store.apply([]) == []
    assert await store.charge([]) == []
    await store.refund([])


async def test_a_closed_store_says_so(store: Store) -> None:
    """Calls after close raise StoreUnavailable; closing twice is fine."""
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.claim([new_entry()])


async def test_an_aerospike_that_is_away_at_the_start(aerospike: AerospikeServer) -> None:
    """Opening works; calls raise StoreUnavailable until it is there, and then go through."""
    if not aerospike.controllable:
        pytest.skip("the Aerospike server given is not ours to stop")
    aerospike.kill()
    try:
        store = await AerospikeStore.open(aerospike.url, call_timeout=1.0)
        with pytest.raises(StoreUnavailable):
            await store.ready()
    finally:
        aerospike.start()
    await until_ready(store)
    await store.close()
