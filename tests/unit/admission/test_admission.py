"""Admission on a real SQLite ledger: claims, charges, leases and replays."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.admission import Admission, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Entry, Phase
from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import AdmissionHarness, batch, task
from tests.support.fakes import Clock


async def test_attempt_suspended_beyond_its_lease_does_not_charge(harness: AdmissionHarness, tmp_path: Path) -> None:
    """The process stops between claim and charge. Another attempt takes the claim over and is charged for it."""

    class SuspendedAfterClaim(SqliteStore):
        async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
            claimed = await super().claim(entries)
            harness.clock.now += 31
            assert (await harness.admit_one(task("k"))).verdict is Verdict.ADMITTED
            return claimed

    store = await SuspendedAfterClaim.open(tmp_path / "s.db", clock=harness.clock)
    with pytest.raises(StoreUnavailable):
        await Admission(store, lease=30, clock=harness.clock, monotonic=harness.clock).admit([task("k")])
    await store.close()
    assert await harness.used() == 1
    assert (await harness.admit_one(task("k"))).verdict is Verdict.CONTENDED


async def test_repeat_of_queued_task_is_replay_and_not_charged(harness: AdmissionHarness) -> None:
    first = await harness.admit_one(task("k"))
    assert (first.verdict, await harness.used()) == (Verdict.ADMITTED, 1)
    await harness.admission.queued([first])
    harness.clock.now += 100
    replay = await harness.admit_one(task("k"))
    assert (replay.verdict, replay.entry.created_at, replay.mismatch) == (Verdict.REPLAY, first.entry.created_at, False)
    assert await harness.used() == 1


async def test_replay_with_different_body_is_mismatch(harness: AdmissionHarness) -> None:
    """A default value that the client writes out does not make the body different."""
    await harness.admission.queued([await harness.admit_one(task("k"))])
    assert (await harness.admit_one(task("k", data_url="https://b.example"))).mismatch
    assert not (await harness.admit_one(task("k", consensus_threshold=3))).mismatch


async def test_same_key_twice_in_one_list_is_admitted_once(harness: AdmissionHarness) -> None:
    verdicts = [decision.verdict for decision in await harness.admit(task("k"), task("k"))]
    assert sorted(verdicts) == [Verdict.ADMITTED, Verdict.CONTENDED]
    assert await harness.used() == 1


async def test_claim_is_contended_during_its_lease_and_taken_over_afterwards(harness: AdmissionHarness) -> None:
    """The crashed attempt was charged too: a crash can charge twice, but never too little."""
    first = await harness.admit_one(task("k"))
    assert (await harness.admit_one(task("k"))).verdict is Verdict.CONTENDED
    harness.clock.now += 31
    second = await harness.admit_one(task("k"))
    assert second.verdict is Verdict.ADMITTED
    assert second.entry.created_at == first.entry.created_at
    assert await harness.used() == 2


async def test_lease_does_not_depend_on_the_clock_of_the_process(harness: AdmissionHarness) -> None:
    """A process whose clock is an hour ahead neither takes a live claim over nor charges for it."""
    ahead = Admission(harness.store, lease=30, clock=lambda: harness.clock() + 3600, monotonic=harness.clock)
    await harness.admit_one(task("k"))
    (decision,) = await ahead.admit([task("k")])
    assert (decision.verdict, await harness.used()) == (Verdict.CONTENDED, 1)


async def test_decision_is_not_held_after_its_lease(harness: AdmissionHarness) -> None:
    decision = await harness.admit_one(task("k"))
    assert harness.admission.holds(decision)
    harness.clock.now += 30
    assert not harness.admission.holds(decision)


async def test_tasks_without_a_quota_are_counted(harness: AdmissionHarness) -> None:
    """A quota that is set later in the month includes them."""
    await harness.admit_one(batch(None, None, customer=Customer(cust_id="c")))
    assert await harness.used() == 2
    assert (await harness.admit_one(task(customer=Customer(cust_id="c", monthly_quota=2)))).verdict is (
        Verdict.QUOTA_EXHAUSTED
    )


async def test_exhausted_quota_leaves_no_claim_and_still_allows_replays(harness: AdmissionHarness) -> None:
    nine_tasks = batch(*[None] * 9, key="b")
    await harness.admission.queued([await harness.admit_one(nine_tasks), await harness.admit_one(task("k"))])
    assert (await harness.admit_one(task("new"))).verdict is Verdict.QUOTA_EXHAUSTED
    assert await harness.store.read([task("new").submission.id]) == [None]
    assert (await harness.admit_one(task("k"))).verdict is Verdict.REPLAY
    assert (await harness.admit_one(batch(*[None] * 9, key="b"))).verdict is Verdict.REPLAY
    assert await harness.used() == 10


async def test_list_that_exceeds_quota_is_admitted_up_to_quota(harness: AdmissionHarness) -> None:
    decisions = await harness.admit(*[task(f"k{i}") for i in range(12)])
    assert [decision.verdict for decision in decisions].count(Verdict.ADMITTED) == 10
    assert await harness.used() == 10


@pytest.mark.parametrize(
    ("age", "expected"),
    [(0.0, 0.0), (100.0, 100.0), (3599.0, 3599.0), (3600.0, 0.0), (-0.5, 0.0), (1e12, 0.0), (None, 0.0)],
)
async def test_new_entry_was_created_at_the_time_that_its_request_states_if_that_is_plausible(
    harness: AdmissionHarness, age: float | None, expected: float
) -> None:
    """A time in the future, or older than the retention, does not count. Ages are in seconds."""
    customer = Customer(cust_id="c", retention=3600)
    stated = None if age is None else int((harness.clock.now - age) * 1000)
    request = msgspec.structs.replace(task("k", customer), created_at=stated)
    entry = (await harness.admit_one(request)).entry
    assert entry.created_at == int((harness.clock.now - expected) * 1000)


async def test_charge_counts_in_the_month_of_the_clock_whatever_time_the_request_states(
    harness: AdmissionHarness,
) -> None:
    """Otherwise a producer could use up the quota of an earlier month."""
    harness.clock.now = 1_775_001_600.0 + 60  # a minute after the beginning of April 2026
    stated = int((harness.clock.now - 3600) * 1000)
    decision = await harness.admit_one(msgspec.structs.replace(task("k"), created_at=stated))
    assert decision.entry.created_at == stated
    assert (await harness.store.used("c", "2026-03"), await harness.store.used("c", "2026-04")) == (0, 1)


async def test_settle_writes_whole_entry_if_ledger_has_lost_it(harness: AdmissionHarness) -> None:
    decision = await harness.admit_one(task("k"))
    harness.clock.now += 8 * 86_400  # the entry expires
    assert await harness.store.read([decision.entry.id]) == [None]
    await harness.admission.accepted(decision.owned)
    (entry,) = await harness.store.read([decision.entry.id])
    assert entry is not None
    assert entry.phase is Phase.ACCEPTED


attempts = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d"]),
        st.lists(st.sampled_from([None, "a", "b", "z"]), max_size=4),
        st.sampled_from(["queue", "refund", "doubt", "crash"]),
    ),
    min_size=1,
    max_size=25,
)


@given(attempts)
@settings(max_examples=100)
def test_each_key_becomes_durable_once_and_is_never_undercharged(
    history: list[tuple[str, list[str | None], str]],
) -> None:
    """Only crashes and unconfirmed publishes can charge more than the durable tasks.

    The histories mix tasks and batches with keyed and unkeyed items; bodies change from attempt to attempt.
    """

    async def play() -> None:
        with tempfile.TemporaryDirectory() as directory:
            clock = Clock()
            store = await SqliteStore.open(Path(directory) / "s.db", clock=clock)
            customer = Customer(cust_id="c", monthly_quota=1_000_000)
            harness = AdmissionHarness(store, clock)
            durable_tasks: set[str] = set()
            durable_batches: set[str] = set()
            allowed_excess = 0
            for key, items, fate in history:
                clock.now += 40  # longer than the lease
                request = batch(*items, key=key, customer=customer) if items else task(key, customer)
                decision = await harness.admit_one(request)
                task_ids = {task.task_id for task in request.submission.tasks}
                submission_id = request.submission.id
                is_durable = submission_id in durable_tasks | durable_batches
                assert (decision.verdict is Verdict.REPLAY) == is_durable
                if decision.verdict is not Verdict.ADMITTED:
                    continue
                assert not task_ids & durable_tasks - set(decision.replayed)
                charged = decision.charge.count if decision.charge else 0
                if fate == "queue":
                    await harness.admission.queued([decision])
                    durable_tasks |= task_ids
                    durable_batches |= {submission_id} if items else set()
                elif fate == "crash":
                    allowed_excess += charged
                else:
                    allowed_excess += charged if fate == "doubt" else 0
                    await harness.admission.release([decision], refund=fate == "refund")
            assert len(durable_tasks) <= await harness.used() <= len(durable_tasks) + allowed_excess
            await store.close()

    asyncio.run(play())
