"""The promises of `domain.ports.Store`, tested on every store."""

import asyncio
import time
import uuid
from collections.abc import Sequence

import msgspec
import pytest

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Doubt, Entry, Phase, Step, StoredEntry
from ingest.domain.ports import Ledger, Store
from tests.support.decided import decided


def new_entry(owner: str = "me", **changes: object) -> Entry:
    entry = Entry(
        id=f"tsk_{uuid.uuid4().hex}",
        cust_id="c",
        created_at=1_775_000_000_123,
        fingerprint=bytes(range(32)),
        retention=3600,
        owner=owner,
        lease=1_775_000_030_123,
        origin="m-1",
        request_id="r-1",
        trace_id="0af7651916cd43dd8448eb211c80319c",
    )
    return msgspec.structs.replace(entry, **changes)


async def claim(store: Ledger, entries: Sequence[Entry]) -> list[Entry]:
    return decided(await store.claim(entries))


async def read(store: Ledger, ids: Sequence[str]) -> list[Entry | None]:
    return decided(await store.read(ids))


async def apply(store: Ledger, changes: Sequence[Change]) -> list[Entry | None]:
    return decided(await store.apply(changes))


async def test_claim_creates_entry_and_returns_it_with_its_generation(store: Store) -> None:
    entry = new_entry()
    (claimed,) = await claim(store, [entry])
    assert claimed == msgspec.structs.replace(entry, generation=claimed.generation)
    assert claimed.generation > 0
    assert await read(store, [entry.id]) == [claimed]


async def inspect(store: Store, entry_id: str) -> StoredEntry:
    (found,) = decided(await store.inspect([entry_id]))
    assert found is not None
    return found


async def test_inspection_returns_what_is_stored_with_its_age(store: Store) -> None:
    """An age is exact to a second. It begins again with each change."""
    entry = new_entry()
    (claimed,) = await claim(store, [entry])
    assert decided(await store.inspect([])) == []
    (missing,) = decided(await store.inspect([f"{entry.id}x"]))
    assert missing is None
    async with asyncio.timeout(10):
        while (found := await inspect(store, entry.id)).unchanged_for < 2:
            assert found == StoredEntry(claimed, found.unchanged_for)
            await asyncio.sleep(0.05)
    assert await store.accept([claimed]) == [True]
    found = await inspect(store, entry.id)
    assert (found.entry.phase, 0 <= found.unchanged_for < 2) == (Phase.ACCEPTED, True)


async def test_claim_of_existing_id_returns_the_stored_entry_unchanged(store: Store) -> None:
    entry = new_entry("first")
    (winner,) = await claim(store, [entry])
    (returned,) = await claim(store, [msgspec.structs.replace(entry, owner="second", created_at=1)])
    assert returned == winner


async def test_one_of_equal_ids_in_a_claim_call_wins_and_is_returned_for_all_of_them(store: Store) -> None:
    entry = new_entry("a")
    other = new_entry("x")
    rival = msgspec.structs.replace(entry, owner="b")
    first, second, third = await claim(store, [entry, other, rival])
    assert first == third
    assert first.owner in ("a", "b")
    assert second.owner == "x"


async def test_all_of_200_concurrent_claims_return_the_same_winner(store: Store) -> None:
    entry = new_entry()
    rivals = [msgspec.structs.replace(entry, owner=f"o{i}") for i in range(200)]
    results = await asyncio.gather(*[claim(store, [rival]) for rival in rivals])
    assert len({claimed.owner for (claimed,) in results}) == 1


async def test_batch_entry_keeps_task_count_and_keyed_item_ids(store: Store) -> None:
    entry = new_entry(task_count=1000, keyed_item_ids={i: f"tsk_{i}" for i in range(0, 1000, 3)})
    await claim(store, [entry])
    (stored,) = await read(store, [entry.id])
    assert stored is not None
    assert (stored.task_count, stored.keyed_item_ids) == (1000, entry.keyed_item_ids)


async def test_claim_returns_3000_entries_in_the_order_of_its_arguments(store: Store) -> None:
    """Half of them were claimed before."""
    entries = [new_entry(f"o{i}") for i in range(3000)]
    await claim(store, entries[::2])
    claimed = await claim(store, [msgspec.structs.replace(entry, owner="late") for entry in entries])
    assert [entry.id for entry in claimed] == [entry.id for entry in entries]
    assert [entry.owner for entry in claimed] == ["late" if i % 2 else f"o{i}" for i in range(3000)]


async def test_read_returns_none_in_the_place_of_an_unknown_id(store: Store) -> None:
    entry = new_entry()
    await claim(store, [entry])
    missing, stored = await read(store, ["tsk_nothing", entry.id])
    assert missing is None
    assert stored is not None
    assert stored.id == entry.id


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Step.TAKE_OVER, {"owner": "new", "lease": 99, "origin": "m-2", "request_id": "r-2", "trace_id": ""}),
        (Step.QUEUE, {"phase": Phase.QUEUED, "lease": 0}),
        (Step.RELEASE, {"phase": Phase.CLAIMED, "lease": 0, "charged": 7}),
        (Step.REFUND, {"phase": Phase.CLAIMED, "lease": 0, "charged": 0, "owner": "new", "doubt": Doubt.REFUNDED}),
    ],
)
async def test_apply_stores_the_step_and_returns_the_entry_with_a_new_generation(
    store: Store, step: Step, expected: dict[str, object]
) -> None:
    (claimed,) = await claim(store, [new_entry()])
    changed = claimed
    if step is Step.TAKE_OVER:
        changed = msgspec.structs.replace(claimed, owner="new", lease=99, origin="m-2", request_id="r-2", trace_id="")
    elif step is Step.RELEASE:
        changed = msgspec.structs.replace(claimed, charged=7)
    elif step is Step.REFUND:
        changed = msgspec.structs.replace(claimed, owner="new", doubt=Doubt.REFUNDED)
    (after,) = await apply(store, [Change(step, changed)])
    assert after is not None
    assert {name: getattr(after, name) for name in expected} == expected
    assert after.generation != claimed.generation
    assert await read(store, [claimed.id]) == [after]


async def test_take_over_replaces_the_fields_that_the_body_decides_and_keeps_the_others(store: Store) -> None:
    (dead,) = await claim(store, [new_entry(task_count=3, keyed_item_ids={1: "tsk_1"}, charged=2)])
    changes: dict[str, object] = {"fingerprint": bytes(32), "owner": "new", "doubt": Doubt.OPEN}
    changes |= {"task_count": 5, "keyed_item_ids": {0: "tsk_0", 4: "tsk_4"}}
    (after,) = await apply(store, [Change(Step.TAKE_OVER, msgspec.structs.replace(dead, **changes))])
    assert after == msgspec.structs.replace(dead, **changes, generation=after.generation if after else 0)
    assert await read(store, [dead.id]) == [after]


async def test_take_over_has_no_effect_until_the_entry_was_idle_long_enough(store: Store) -> None:
    """The store's clock decides. A change that has no effect does not count as one."""
    (claimed,) = await claim(store, [new_entry()])
    began = time.monotonic()
    rival = Change(Step.TAKE_OVER, msgspec.structs.replace(claimed, owner="rival"), idle=400)
    async with asyncio.timeout(10):
        while await apply(store, [rival]) == [None]:
            assert await read(store, [claimed.id]) == [claimed]
            await asyncio.sleep(0.05)
    assert time.monotonic() - began >= 0.35
    (stored,) = await read(store, [claimed.id])
    assert stored is not None
    assert stored.owner == "rival"


async def test_right_to_publish_again_is_taken_once_the_entry_was_idle_long_enough(store: Store) -> None:
    """It is a lease in the queued entry. Once it is queued again, nothing is left of it."""
    (claimed,) = await claim(store, [new_entry()])
    began = time.monotonic()
    (queued,) = await apply(store, [Change(Step.QUEUE, claimed)])
    assert queued is not None
    change = Change(Step.REPUBLISH, msgspec.structs.replace(queued, owner="repeat", lease=99), idle=400)
    async with asyncio.timeout(10):
        while (results := await apply(store, [change])) == [None]:
            assert await read(store, [queued.id]) == [queued]
            await asyncio.sleep(0.05)
    assert time.monotonic() - began >= 0.35
    (stored,) = results
    assert stored is not None
    assert (stored.phase, stored.owner, stored.lease) == (Phase.QUEUED, "repeat", 99)
    assert await read(store, [queued.id]) == [stored]
    assert await apply(store, [change]) == [None]
    (queued_again,) = await apply(store, [Change(Step.QUEUE, stored)])
    assert queued_again is not None
    assert (queued_again.phase, queued_again.lease) == (Phase.QUEUED, 0)


async def test_in_doubt_returns_idle_entries_that_were_released_with_a_charge(store: Store) -> None:
    """Not those that are claimed, accepted, released without a charge, or that changed a moment ago."""
    entries = await claim(store, [new_entry() for _ in range(4)])
    charged = [msgspec.structs.replace(entry, charged=3) for entry in entries]
    released, _, _ = await apply(
        store, [Change(Step.RELEASE, charged[0]), Change(Step.RELEASE, entries[1]), Change(Step.RELEASE, charged[2])]
    )
    await store.accept([entries[2]])
    ids = {entry.id for entry in entries}
    async with asyncio.timeout(20):
        while not (doubts := [entry for entry in await store.in_doubt(200) if entry.id in ids]):
            await asyncio.sleep(0.1)
    assert doubts == [released]
    assert not [entry for entry in await store.in_doubt(3_600_000) if entry.id in ids]


@pytest.mark.parametrize("step", list(Step))
async def test_apply_returns_none_and_changes_nothing_if_the_generation_has_changed(store: Store, step: Step) -> None:
    (old,) = await claim(store, [new_entry()])
    (new,) = await apply(store, [Change(Step.QUEUE, old)])
    assert await apply(store, [Change(step, old)]) == [None]
    assert await read(store, [old.id]) == [new]


@pytest.mark.parametrize("step", list(Step))
async def test_apply_returns_none_and_creates_nothing_if_the_entry_is_lost(store: Store, step: Step) -> None:
    (lost,) = await claim(store, [new_entry()])
    await apply(store, [Change(Step.FORGET, lost)])
    assert await apply(store, [Change(step, lost)]) == [None]
    assert await read(store, [lost.id]) == [None]


async def test_release_has_no_effect_on_a_claim_that_another_attempt_has_taken_over(store: Store) -> None:
    """An attempt whose take-over is undecided gives it back, and it does not know whether it has it."""
    (dead,) = await claim(store, [new_entry("dead")])
    (stored,) = await apply(store, [Change(Step.TAKE_OVER, msgspec.structs.replace(dead, owner="a"))])
    assert stored is not None
    assert await apply(store, [Change(Step.RELEASE, msgspec.structs.replace(stored, owner="b"))]) == [None]
    assert await read(store, [dead.id]) == [stored]
    assert await apply(store, [Change(Step.RELEASE, stored)]) != [None]


async def test_forget_deletes_the_entry_and_returns_it(store: Store) -> None:
    (claimed,) = await claim(store, [new_entry()])
    assert await apply(store, [Change(Step.FORGET, claimed)]) == [claimed]
    assert await read(store, [claimed.id]) == [None]


async def test_forget_does_not_delete_an_entry_that_another_attempt_has_created_since(store: Store) -> None:
    """Both have the same generation. The first deletion may arrive twice, or late."""
    (first,) = await claim(store, [new_entry("a")])
    await apply(store, [Change(Step.FORGET, first)])
    (second,) = await claim(store, [msgspec.structs.replace(first, owner="b", generation=0)])
    assert second.generation == first.generation
    assert await apply(store, [Change(Step.FORGET, first)]) == [None]
    assert await read(store, [first.id]) == [second]


def as_accepted(entry: Entry | None) -> Entry:
    """Return the entry as it is after `accept`, without its generation."""
    assert entry is not None
    return msgspec.structs.replace(entry, phase=Phase.ACCEPTED, lease=0, generation=0)


async def test_accept_works_in_every_phase_and_a_second_accept_changes_nothing(store: Store) -> None:
    """The entries are claimed, queued and taken over by another owner, with different retentions."""
    claimed = await claim(store, [new_entry(retention=retention) for retention in (3600, 3600, 7200)])
    await apply(store, [Change(Step.QUEUE, claimed[1])])
    (rival,) = await apply(store, [Change(Step.TAKE_OVER, msgspec.structs.replace(claimed[2], owner="new"))])
    await store.accept(claimed)
    accepted = await read(store, [entry.id for entry in claimed])
    assert [as_accepted(entry) for entry in accepted] == [
        as_accepted(entry) for entry in (claimed[0], claimed[1], rival)
    ]
    assert [entry.phase for entry in accepted if entry] == [Phase.ACCEPTED] * 3
    await store.accept(claimed)
    assert [as_accepted(entry) for entry in await read(store, [entry.id for entry in claimed])] == [
        as_accepted(entry) for entry in accepted
    ]


async def test_accept_writes_whole_entries_that_the_store_has_lost_or_never_had(store: Store) -> None:
    """An entry of the same call that is still stored is accepted, too."""
    lost, stored = await claim(store, [new_entry(), new_entry()])
    await apply(store, [Change(Step.FORGET, lost)])
    never_stored = new_entry(task_count=2, keyed_item_ids={1: "tsk_1"})
    entries = [lost, stored, never_stored]
    await store.accept(entries)
    accepted = await read(store, [entry.id for entry in entries])
    assert [entry and entry.phase for entry in accepted] == [Phase.ACCEPTED] * 3
    assert [as_accepted(entry) for entry in accepted] == [as_accepted(entry) for entry in entries]


async def test_accept_of_an_entry_with_generation_0_replaces_every_stored_field(store: Store) -> None:
    (old,) = await claim(store, [new_entry()])
    replacement = msgspec.structs.replace(old, fingerprint=bytes(32), owner="", generation=0)
    await store.accept([replacement])
    assert [as_accepted(entry) for entry in await read(store, [old.id])] == [as_accepted(replacement)]


async def test_only_one_of_50_concurrent_take_overs_succeeds(store: Store) -> None:
    (dead,) = await claim(store, [new_entry()])
    rivals = [Change(Step.TAKE_OVER, msgspec.structs.replace(dead, owner=f"o{i}")) for i in range(50)]
    results = await asyncio.gather(*[apply(store, [rival]) for rival in rivals])
    assert sum(result != [None] for result in results) == 1


async def test_accepted_entry_is_absent_after_its_retention_and_can_be_claimed_again(store: Store) -> None:
    """The entry of a submission that is still claimed or queued lives on."""
    claimed_entry, queued_entry, entry = await claim(store, [new_entry(retention=1) for _ in range(3)])
    await store.apply([Change(Step.QUEUE, queued_entry)])
    await store.accept([entry])
    async with asyncio.timeout(10):
        while (await read(store, [entry.id]))[0] is not None:
            await asyncio.sleep(0.1)
    (claimed,) = await claim(store, [msgspec.structs.replace(entry, owner="later")])
    assert claimed.owner == "later"
    assert None not in await store.read([claimed_entry.id, queued_entry.id])


async def test_open_store_is_ready(store: Store) -> None:
    await store.ready()


async def test_empty_lists_are_valid_arguments(store: Store) -> None:
    assert await claim(store, []) == []
    assert await read(store, []) == []
    assert await apply(store, []) == []
    assert await store.charge([]) == []
    assert await store.claim_permits([]) == []
    await store.accept([])
    await store.refund([])
    await store.record_key_use([], 1)


async def test_closed_store_raises_store_unavailable_and_can_be_closed_again(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await claim(store, [new_entry()])
