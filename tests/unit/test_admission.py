"""Admission on a real SQLite ledger: claims, charges, leases and replays."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.admission import DOUBT, Admission, Decision, Request, Verdict
from ingest.domain.customers import Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Entry, Phase
from ingest.domain.submissions import batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from tests.support.fakes import Clock

SPEC = {"question": "q?", "options": ["a", "b"]}
CUSTOMER = Customer(cust_id="c", monthly_quota=10)
MONTHS = ("2026-03", "2026-04")


def body(**changes: Any) -> dict[str, Any]:
    return {"type": "sentiment", "data_url": "https://a.example/x", "label_spec": SPEC} | changes


def task(key: str | None = None, customer: Customer = CUSTOMER, **changes: Any) -> Request:
    return Request(task_submission(body(**changes), customer.cust_id, customer.webhooks, key), customer)


def batch(*item_keys: str | None, key: str | None = None, customer: Customer = CUSTOMER) -> Request:
    items = [body(idempotency_key=item_key) if item_key else body() for item_key in item_keys]
    return Request(batch_submission({"tasks": items}, customer.cust_id, customer.webhooks, key), customer)


class AdmissionHarness:
    """An admission with its store and its clock."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.admission = Admission(store, lease=30, clock=clock, monotonic=clock)

    async def admit(self, *requests: Request) -> list[Decision]:
        return await self.admission.admit(requests)

    async def admit_one(self, request: Request) -> Decision:
        return (await self.admission.admit([request]))[0]

    async def used(self) -> int:
        return sum([await self.store.used("c", month) for month in MONTHS])


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[AdmissionHarness]:
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    yield AdmissionHarness(store, clock)
    await store.close()


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


async def test_release_with_refund_frees_key_and_quota(harness: AdmissionHarness) -> None:
    """This follows a publish that certainly failed. The retry is charged again, once."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=True)
    assert await harness.used() == 0
    assert (await harness.admit_one(task("k"))).verdict is Verdict.ADMITTED
    assert await harness.used() == 1


async def test_release_without_refund_keeps_charge_for_retry(harness: AdmissionHarness) -> None:
    """This follows a publish that may have succeeded. The retry is admitted at once and is not charged again."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    assert (await harness.admit_one(task("k"))).verdict is Verdict.ADMITTED
    assert await harness.used() == 1


async def test_other_body_waits_until_the_doubt_about_the_first_one_ends(harness: AdmissionHarness) -> None:
    """The first body may have been published. The same body is admitted at once, because a copy is harmless."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    other = task("k", data_url="https://a.example/other")
    assert (await harness.admit_one(other)).verdict is Verdict.CONTENDED
    assert (await harness.admit_one(task("k"))).verdict is Verdict.ADMITTED
    harness.clock.now += DOUBT - 1
    assert (await harness.admit_one(other)).verdict is Verdict.CONTENDED
    harness.clock.now += 1
    assert (await harness.admit_one(other)).verdict is Verdict.ADMITTED


async def test_other_body_waits_after_an_attempt_has_given_back_a_claim_whose_lease_had_ended(
    harness: AdmissionHarness,
) -> None:
    """The first owner may have crashed after its publish. The second has the same body, and exceeds the quota."""
    await harness.admit_one(task("k"))
    harness.clock.now += 31
    assert (await harness.admit_one(task("k", Customer(cust_id="c", monthly_quota=0)))).verdict is (
        Verdict.QUOTA_EXHAUSTED
    )
    other = task("k", data_url="https://a.example/other")
    assert (await harness.admit_one(other)).verdict is Verdict.CONTENDED
    assert (await harness.admit_one(task("k"))).verdict is Verdict.ADMITTED


async def test_other_body_is_admitted_at_once_if_nothing_was_published(harness: AdmissionHarness) -> None:
    await harness.admission.release([await harness.admit_one(task("k"))], refund=True)
    other = await harness.admit_one(task("k", data_url="https://a.example/other"))
    assert (other.verdict, await harness.used()) == (Verdict.ADMITTED, 1)


async def test_charge_in_doubt_is_refunded_once_and_charged_again_with_the_next_attempt(
    harness: AdmissionHarness,
) -> None:
    """A batch of two unkeyed items and a keyed one has two entries."""
    await harness.admission.release([await harness.admit_one(batch(None, "x", None, key="b"))], refund=False)
    harness.clock.now += DOUBT / 2 - 1
    assert await harness.admission.refund_doubts() == 0
    harness.clock.now += 1
    assert (await harness.admission.refund_doubts(), await harness.used()) == (2, 0)
    assert (await harness.admission.refund_doubts(), await harness.used()) == (0, 0)
    retry = await harness.admit_one(batch(None, "x", None, key="b"))
    assert (retry.verdict, await harness.used()) == (Verdict.ADMITTED, 3)


async def test_other_body_waits_for_a_batch_in_doubt_that_has_only_keyed_items(harness: AdmissionHarness) -> None:
    """Its own entry covers no task, so nothing is charged for it."""
    await harness.admission.release([await harness.admit_one(batch("x", key="b"))], refund=False)
    assert (await harness.admit_one(batch("y", key="b"))).verdict is Verdict.CONTENDED


async def test_refund_is_made_in_the_month_of_the_charge(harness: AdmissionHarness) -> None:
    """The submission was created in March, refunded, and charged again in April."""
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    harness.clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    harness.clock.now += 86_400
    await harness.admission.release([await harness.admit_one(task("k"))], refund=False)
    assert [await harness.store.used("c", month) for month in MONTHS] == [0, 1]
    harness.clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    assert [await harness.store.used("c", month) for month in MONTHS] == [0, 0]


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


async def test_batch_is_charged_only_for_new_tasks(harness: AdmissionHarness) -> None:
    """An item whose key was queued before is a replay within the batch. Two items with the same key are one task."""
    await harness.admission.queued([await harness.admit_one(task("x"))])
    decision = await harness.admit_one(batch("x", "y", "y", None, key="b"))
    assert decision.verdict is Verdict.ADMITTED
    assert decision.replayed == (task("x").submission.id,)
    assert await harness.used() == 3


async def test_batch_has_own_entry_and_one_for_each_item_key(harness: AdmissionHarness) -> None:
    """Unkeyed items have no entry of their own; the batch's entry lists their ids."""
    decision = await harness.admit_one(batch(None, "x", None, "y", "x", key="b"))
    tasks = decision.request.submission.tasks
    assert [entry.id for entry in decision.owned] == [decision.entry.id, tasks[1].task_id, tasks[3].task_id]
    assert decision.entry.task_ids == [task.task_id for task in tasks]
    assert [decision.entry.covers_index(index) for index in range(6)] == [True, False, True, False, False, False]
    stored = await harness.store.read([decision.entry.id, *[task.task_id for task in tasks]])
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
async def test_retry_of_unconfirmed_batch_is_charged_only_for_uncharged_tasks(
    harness: AdmissionHarness, first: list[str | None], second: list[str | None], charged: int
) -> None:
    """This also holds if the retry has a different body. The stored entry is then the retry's."""
    await harness.admission.release([await harness.admit_one(batch(*first, key="b"))], refund=False)
    harness.clock.now += DOUBT
    retry = await harness.admit_one(batch(*second, key="b"))
    assert (retry.verdict, await harness.used()) == (Verdict.ADMITTED, charged)
    (stored,) = await harness.store.read([retry.entry.id])
    assert stored is not None
    assert stored.fingerprint == retry.request.submission.fingerprint
    assert stored.task_ids == [task.task_id for task in retry.request.submission.tasks]
    # A refund takes back only what the retry was charged, and the next retry is charged for it again.
    await harness.admission.release([retry], refund=True)
    assert (await harness.admit_one(batch(*second, key="b"))).verdict is Verdict.ADMITTED
    assert await harness.used() == charged


async def test_expired_batch_claim_is_taken_over_with_its_items(harness: AdmissionHarness) -> None:
    """After the lease, the retry holds the batch and its keyed items and keeps the original creation time."""
    first = await harness.admit_one(batch(None, "x", key="b"))
    assert (await harness.admit_one(batch(None, "x", key="b"))).verdict is Verdict.CONTENDED
    harness.clock.now += 31
    second = await harness.admit_one(batch(None, "x", key="b"))
    assert second.verdict is Verdict.ADMITTED
    assert [entry.id for entry in second.owned] == [entry.id for entry in first.owned]
    assert second.entry.created_at == first.entry.created_at
    await harness.admission.queued([first])  # the first owner resumes, but its claims were taken over
    stored = await harness.store.read([entry.id for entry in second.owned])
    assert [entry.is_durable for entry in stored if entry] == [False, False]


async def test_item_queued_by_crashed_batch_is_published_again_by_retry(harness: AdmissionHarness) -> None:
    """The crash left the item queued and its batch claimed. The retry includes the item, and does not report a replay.

    The retry is not charged for the item, but again for the unkeyed one.
    """
    first = await harness.admit_one(batch(None, "x", key="b"))
    await harness.admission.queued([msgspec.structs.replace(first, owned=first.owned[1:])])
    harness.clock.now += 31
    second = await harness.admit_one(batch(None, "x", key="b"))
    assert (second.verdict, second.replayed) == (Verdict.ADMITTED, ())
    assert [entry.id for entry in second.owned] == [second.entry.id]
    assert await harness.used() == 3


async def test_batch_releases_its_claims_if_an_item_is_contended(harness: AdmissionHarness) -> None:
    """Nothing is charged and nothing stays claimed, so that neither attempt waits for the other."""
    await harness.admit_one(task("x"))
    assert (await harness.admit_one(batch("w", "x", key="b"))).verdict is Verdict.CONTENDED
    assert await harness.used() == 1
    assert (await harness.admit_one(task("w"))).verdict is Verdict.ADMITTED


async def test_batch_that_exceeds_quota_is_refused_whole(harness: AdmissionHarness) -> None:
    """Nothing is charged, and neither the batch nor an item keeps a claim."""
    decision = await harness.admit_one(batch(None, *[f"i{i}" for i in range(10)], key="b"))
    assert (decision.verdict, await harness.used()) == (Verdict.QUOTA_EXHAUSTED, 0)
    task_ids = [task.task_id for task in decision.request.submission.tasks]
    assert await harness.store.read([decision.request.submission.id, *task_ids]) == [None] * 12


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
