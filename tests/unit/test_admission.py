"""Admission on a real SQLite ledger: claims, charges, leases, replays; and its laws."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.admission import Admission, Decision, Request, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Entry, Phase
from ingest.domain.submissions import batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock

SPEC = {"question": "q?", "options": ["a", "b"]}
CUSTOMER = Customer(cust_id="c", monthly_quota=10)
MONTH = "2026-03"


def body(**changes: Any) -> dict[str, Any]:
    return {"type": "sentiment", "data_url": "https://a.example/x", "label_spec": SPEC} | changes


def task(key: str | None = None, customer: Customer = CUSTOMER, **changes: Any) -> Request:
    return Request(task_submission(body(**changes), customer.cust_id, customer.webhooks, key), customer)


def batch(*keys: str | None, key: str | None = None, customer: Customer = CUSTOMER) -> Request:
    items = [body(idempotency_key=item) if item else body() for item in keys]
    return Request(batch_submission({"tasks": items}, customer.cust_id, customer.webhooks, key), customer)


class AdmissionHarness:
    """A store, its clock and an admission."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.admission = Admission(store, lease=30, clock=clock)

    async def admit(self, *requests: Request) -> list[Decision]:
        return await self.admission.admit(requests)

    async def one(self, request: Request) -> Decision:
        return (await self.admission.admit([request]))[0]

    async def used(self) -> int:
        return await self.store.used("c", MONTH)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[AdmissionHarness]:
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    yield AdmissionHarness(store, clock)
    await store.close()


async def test_a_process_that_stood_still_does_not_charge(harness: AdmissionHarness, tmp_path: Path) -> None:
    """Stopped between claim and charge for longer than the lease: who took over has paid, so it must not pay again."""

    class Stopped(SqliteStore):
        async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
            claimed = await super().claim(entries)
            harness.clock.now += 31
            assert (await harness.one(task("k"))).verdict is Verdict.ADMITTED
            return claimed

    store = await Stopped.open(tmp_path / "s.db", clock=harness.clock)
    with pytest.raises(StoreUnavailable):
        await Admission(store, lease=30, clock=harness.clock).admit([task("k")])
    await store.close()
    assert await harness.used() == 1
    assert (await harness.one(task("k"))).verdict is Verdict.CONTENDED


async def test_new_then_replay(harness: AdmissionHarness) -> None:
    """The first is admitted and charged; after `queued` the key is a replay of it, not charged."""
    first = await harness.one(task("k"))
    assert (first.verdict, await harness.used()) == (Verdict.ADMITTED, 1)
    await harness.admission.queued([first])
    harness.clock.now += 100
    again = await harness.one(task("k"))
    assert (again.verdict, again.entry.created_at, again.mismatch) == (Verdict.REPLAY, first.entry.created_at, False)
    assert await harness.used() == 1


async def test_another_body_is_a_mismatch(harness: AdmissionHarness) -> None:
    """The original stands and the difference is told; defaults spelled out are no difference."""
    await harness.admission.queued([await harness.one(task("k"))])
    assert (await harness.one(task("k", data_url="https://b.example"))).mismatch
    assert not (await harness.one(task("k", consensus_threshold=3))).mismatch


async def test_two_of_one_key_in_one_list(harness: AdmissionHarness) -> None:
    """One is admitted, the other busy; one charge."""
    verdicts = [decision.verdict for decision in await harness.admit(task("k"), task("k"))]
    assert sorted(verdicts) == [Verdict.ADMITTED, Verdict.CONTENDED]
    assert await harness.used() == 1


async def test_a_live_lease_is_busy_and_a_dead_one_is_taken_over(harness: AdmissionHarness) -> None:
    """Whoever crashed delays a retry by the lease, and its charge may count twice, never less."""
    first = await harness.one(task("k"))
    assert (await harness.one(task("k"))).verdict is Verdict.CONTENDED
    harness.clock.now += 31
    second = await harness.one(task("k"))
    assert second.verdict is Verdict.ADMITTED
    assert second.entry.created_at == first.entry.created_at
    assert await harness.used() == 2


async def test_release_with_refund_leaves_nothing_behind(harness: AdmissionHarness) -> None:
    """After a publish that certainly failed: free at once, and charged anew once."""
    await harness.admission.release([await harness.one(task("k"))], refund=True)
    assert await harness.used() == 0
    assert (await harness.one(task("k"))).verdict is Verdict.ADMITTED
    assert await harness.used() == 1


async def test_release_in_doubt_keeps_the_charge_for_the_retry(harness: AdmissionHarness) -> None:
    """After a publish in doubt: free at once, and the retry is not charged again."""
    await harness.admission.release([await harness.one(task("k"))], refund=False)
    assert (await harness.one(task("k"))).verdict is Verdict.ADMITTED
    assert await harness.used() == 1


async def test_quota_refuses_and_leaves_no_claim(harness: AdmissionHarness) -> None:
    """A refused key is free; a replay with an exhausted quota is still a replay."""
    await harness.admission.queued([await harness.one(batch(*[None] * 9, key="b")), await harness.one(task("k"))])
    assert (await harness.one(task("new"))).verdict is Verdict.QUOTA_EXHAUSTED
    assert await harness.store.read([task("new").submission.id]) == [None]
    assert (await harness.one(task("k"))).verdict is Verdict.REPLAY
    assert (await harness.one(batch(*[None] * 9, key="b"))).verdict is Verdict.REPLAY
    assert await harness.used() == 10


async def test_quota_of_a_list_is_used_up_one_by_one(harness: AdmissionHarness) -> None:
    """Twelve singles under a limit of ten: ten are admitted."""
    decisions = await harness.admit(*[task(f"k{i}") for i in range(12)])
    assert [decision.verdict for decision in decisions].count(Verdict.ADMITTED) == 10
    assert await harness.used() == 10


async def test_a_batch_is_charged_for_its_new_tasks_only(harness: AdmissionHarness) -> None:
    """An item accepted before is a replay within the batch; two items with one key are one task."""
    await harness.admission.queued([await harness.one(task("x"))])
    decision = await harness.one(batch("x", "y", "y", None, key="b"))
    assert decision.verdict is Verdict.ADMITTED
    assert decision.replayed == (task("x").submission.id,)
    assert await harness.used() == 3


async def test_a_batch_is_one_entry_and_one_for_each_key(harness: AdmissionHarness) -> None:
    """Items without keys live in the batch's entry, which tells their ids."""
    decision = await harness.one(batch(None, "x", None, "y", "x", key="b"))
    tasks = decision.request.submission.tasks
    assert [entry.id for entry in decision.owned] == [decision.entry.id, tasks[1].task_id, tasks[3].task_id]
    assert decision.entry.task_ids == [task.task_id for task in tasks]
    assert [decision.entry.covers_index(index) for index in range(6)] == [True, False, True, False, False, False]
    stored = await harness.store.read([decision.entry.id, *[each.task_id for each in tasks]])
    assert [entry is not None for entry in stored] == [True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("first", "second", "charged"),
    [
        ([None] * 4, [None] * 4, 4),
        ([None] * 2, [None] * 5, 5),
        ([None] * 5, [None] * 2, 5),
        ([None, "x", None], [None, "x", None], 3),
        ([None, "x"], ["x", None, None, "y"], 4),
        (["x", "y"], [None, None], 4),
        ([None, "x", "x"], ["x", None, "x"], 2),
    ],
)
async def test_a_batch_in_doubt_is_charged_once(
    harness: AdmissionHarness, first: list[str | None], second: list[str | None], charged: int
) -> None:
    """The retry pays for what the first attempt has not paid, also with another body, and the entry is the retry's."""
    await harness.admission.release([await harness.one(batch(*first, key="b"))], refund=False)
    retry = await harness.one(batch(*second, key="b"))
    assert (retry.verdict, await harness.used()) == (Verdict.ADMITTED, charged)
    (stored,) = await harness.store.read([retry.entry.id])
    assert stored is not None
    assert stored.fingerprint == retry.request.submission.fingerprint
    assert stored.task_ids == [each.task_id for each in retry.request.submission.tasks]
    # Taken back is only what the retry has paid, and it is paid again then.
    await harness.admission.release([retry], refund=True)
    assert (await harness.one(batch(*second, key="b"))).verdict is Verdict.ADMITTED
    assert await harness.used() == charged


async def test_a_dead_batch_is_taken_over_with_its_items(harness: AdmissionHarness) -> None:
    """After the lease, one retry holds the batch and its keyed items under the original time."""
    first = await harness.one(batch(None, "x", key="b"))
    assert (await harness.one(batch(None, "x", key="b"))).verdict is Verdict.CONTENDED
    harness.clock.now += 31
    second = await harness.one(batch(None, "x", key="b"))
    assert second.verdict is Verdict.ADMITTED
    assert [entry.id for entry in second.owned] == [entry.id for entry in first.owned]
    assert second.entry.created_at == first.entry.created_at
    await harness.admission.queued([first])  # the dead one wakes up: it holds nothing any more
    assert [e.is_durable for e in await harness.store.read([e.id for e in second.owned]) if e] == [False, False]


async def test_an_item_that_landed_with_a_dead_batch_is_sent_again(harness: AdmissionHarness) -> None:
    """`queued` reached the item but not its batch: the retry carries the item, unpaid, and not as a replay."""
    first = await harness.one(batch(None, "x", key="b"))
    await harness.admission.queued([msgspec.structs.replace(first, owned=first.owned[1:])])
    harness.clock.now += 31
    second = await harness.one(batch(None, "x", key="b"))
    assert (second.verdict, second.replayed) == (Verdict.ADMITTED, ())
    assert [entry.id for entry in second.owned] == [second.entry.id]
    assert await harness.used() == 3  # the crash has paid once too often for the batch's own item


async def test_a_batch_steps_back_where_an_item_is_busy(harness: AdmissionHarness) -> None:
    """Nothing charged, nothing held: neither waits for the other."""
    await harness.one(task("x"))
    assert (await harness.one(batch("w", "x", key="b"))).verdict is Verdict.CONTENDED
    assert await harness.used() == 1
    assert (await harness.one(task("w"))).verdict is Verdict.ADMITTED


async def test_a_batch_is_all_or_nothing_for_the_quota(harness: AdmissionHarness) -> None:
    """Eleven tasks under a limit of ten: none, and no item keeps a claim."""
    decision = await harness.one(batch(None, *[f"i{i}" for i in range(10)], key="b"))
    assert (decision.verdict, await harness.used()) == (Verdict.QUOTA_EXHAUSTED, 0)
    ids = [each.task_id for each in decision.request.submission.tasks]
    assert await harness.store.read([decision.request.submission.id, *ids]) == [None] * 12


async def test_accepted_goes_with_a_lost_ledger(harness: AdmissionHarness) -> None:
    """Settling writes the whole entry even where the store has lost it."""
    decision = await harness.one(task("k"))
    harness.clock.now += 8 * 86_400
    await harness.admission.accepted(decision.owned)
    (entry,) = await harness.store.read([decision.entry.id])
    assert entry is not None
    assert entry.phase is Phase.ACCEPTED


steps = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d"]),
        st.lists(st.sampled_from([None, "a", "b", "z"]), max_size=4),
        st.sampled_from(["queue", "refund", "doubt", "crash"]),
    ),
    min_size=1,
    max_size=25,
)


@given(steps)
@settings(max_examples=100)
def test_laws_over_any_history(history: list[tuple[str, list[str | None], str]]) -> None:
    """One identity per key; one landing per key; never under-charged; over-charged only by crashes and doubts.

    Singles, and batches of items with and without keys, whose bodies change from attempt to attempt.
    """

    async def play() -> None:
        with tempfile.TemporaryDirectory() as directory:
            clock = Clock()
            store = await SqliteStore.open(Path(directory) / "s.db", clock=clock)
            plenty = Customer(cust_id="c", monthly_quota=1_000_000)
            harness = AdmissionHarness(store, clock)
            is_durable: set[str] = set()
            batches: set[str] = set()
            spent = 0
            for key, items, fate in history:
                clock.now += 40
                request = batch(*items, key=key, customer=plenty) if items else task(key, plenty)
                decision = await harness.one(request)
                wanted = {each.task_id for each in request.submission.tasks}
                id_ = request.submission.id
                assert (decision.verdict is Verdict.REPLAY) == (id_ in is_durable | batches)
                if decision.verdict is not Verdict.ADMITTED:
                    continue
                assert not wanted & is_durable - set(decision.replayed)
                if fate == "queue":
                    await harness.admission.queued([decision])
                    is_durable |= wanted
                    batches |= {id_} if items else set()
                elif fate == "crash":
                    spent += decision.charge.count if decision.charge else 0
                else:
                    spent += decision.charge.count if decision.charge and fate == "doubt" else 0
                    await harness.admission.release([decision], refund=fate == "refund")
            assert len(is_durable) <= await harness.used() <= len(is_durable) + spent
            await store.close()

    asyncio.run(play())
