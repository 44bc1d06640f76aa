"""The store cannot decide the records of one submission: only that one waits, and the others are finished."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.admission import Request
from ingest.admission.admission import DOUBT
from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.ledger import Phase
from ingest.domain.messages import Delivery
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from ingest.waiting import Backoff
from ingest.worker.breaker import CircuitBreaker
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.eventually import eventually
from tests.support.fakes import Clock
from tests.support.partial_store import PartialStore
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness, WorkerHarness

CUSTOMER = Customer(cust_id="c", monthly_quota=100)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[PartialStore]:
    store = PartialStore(await SqliteStore.open(tmp_path / "s.db"))
    await store.save_customer(CUSTOMER)
    yield store
    await store.close()


@pytest.fixture
def harness(store: PartialStore) -> ProcessorHarness:
    return ProcessorHarness(store)


def task_id(key: str) -> str:
    return keyed_id(SubmissionKind.TASK, "c", key)


def from_shim(submission: Submission) -> Delivery:
    return admitted_delivery(Admitted(submission, 1_775_000_000_000, 604_800))


async def admit(harness: ProcessorHarness, submission: Submission, *, in_doubt: bool) -> Delivery:
    """Admit a submission as the shim does; return its message. If in doubt, the shim has had no confirm."""
    decisions = await harness.admission.admit([Request(submission, CUSTOMER)])
    if in_doubt:
        await harness.admission.release(decisions, refund=False)
    else:
        await harness.admission.queued(decisions)
    return from_shim(submission)


async def phases(store: PartialStore, *ids: str) -> list[Phase | None]:
    return [entry.phase if entry else None for entry in await store.read(ids)]


def accepted(event_ids: list[str]) -> list[str]:
    """Return the ids of the tasks and batches in the ids of acceptance events."""
    return [event_id.partition(":accepted:")[0] for event_id in event_ids]


def task(key: str) -> Submission:
    return task_submission(TASK, "c", frozenset(), key)


async def test_direct_submission_that_is_undecided_waits_alone(harness: ProcessorHarness, store: PartialStore) -> None:
    good, bad = direct_delivery("good"), direct_delivery("bad")
    store.undecided = {task_id("bad")}
    assert accepted(await harness.attempt(bad, good)) == [task_id("good")]
    assert (harness.undecided, harness.unavailable, harness.consumer.acked) == ([bad], [], [good])
    store.undecided = set()
    assert accepted(await harness.attempt(bad)) == [task_id("bad")]


@pytest.mark.parametrize("in_doubt", [False, True])
async def test_admitted_submission_that_is_undecided_waits_alone(
    harness: ProcessorHarness, store: PartialStore, in_doubt: bool
) -> None:
    good, bad = [await admit(harness, task(key), in_doubt=in_doubt) for key in ("good", "bad")]
    store.undecided = {task_id("bad")}
    assert accepted(await harness.attempt(bad, good)) == [task_id("good")]
    assert (harness.undecided, harness.consumer.acked) == ([bad], [good])
    store.undecided = set()
    assert accepted(await harness.attempt(bad)) == [task_id("bad")]


async def test_batch_of_which_an_item_cannot_be_settled_waits_alone(
    harness: ProcessorHarness, store: PartialStore
) -> None:
    """The batch itself is not settled either, so the next attempt publishes its events again, with the same ids."""
    submission = batch_submission({"tasks": [TASK | {"idempotency_key": "bad"}, TASK]}, "c", frozenset(), "b")
    batch, good = from_shim(submission), from_shim(task("good"))
    store.undecided, store.operations = {task_id("bad")}, {"accept"}
    published = await harness.attempt(batch, good)
    assert (len(harness.undecided), harness.unavailable, harness.consumer.acked) == (1, [], [good])
    assert await phases(store, submission.id, task_id("good")) == [None, Phase.ACCEPTED]
    store.undecided = set()
    assert {*accepted(await harness.attempt(batch)), task_id("good")} == set(accepted(published))
    assert await phases(store, submission.id, task_id("bad")) == [Phase.ACCEPTED] * 2


async def test_direct_submission_that_cannot_be_settled_is_not_its_own_duplicate(
    harness: ProcessorHarness, store: PartialStore
) -> None:
    """The settle took effect, and only its answer was lost."""
    store.undecided, store.operations, store.takes_effect = {task_id("bad")}, {"accept"}, True
    await harness.attempt(direct_delivery("bad"), direct_delivery("good"))
    store.undecided = set()
    assert await harness.attempt(*harness.undecided) == []
    assert len(harness.consumer.acked) == 2


async def test_submissions_of_a_customer_whose_record_cannot_be_read_wait_alone(
    harness: ProcessorHarness, store: PartialStore
) -> None:
    """One failed look-up per attempt."""
    good, admitted = direct_delivery("good"), from_shim(task("admitted"))
    bad = [direct_delivery(name, cust_id="bad") for name in ("b1", "b2")]
    store.unreadable = {"bad"}
    assert accepted(await harness.attempt(bad[0], admitted, good, bad[1])) == [task_id("admitted"), task_id("good")]
    assert (harness.undecided, harness.unavailable, harness.consumer.acked) == (bad, [], [admitted, good])
    assert store.looked_up == ["bad", "c"]
    store.unreadable = set()
    await store.save_customer(Customer(cust_id="bad"))
    assert len(await harness.attempt(*bad)) == 2


async def test_refunded_submission_of_a_customer_whose_record_cannot_be_read_waits_alone(
    tmp_path: Path, clock: Clock
) -> None:
    """The worker charges it again, which needs the customer's quota."""
    store = PartialStore(await SqliteStore.open(tmp_path / "refunded.db", clock=clock))
    harness = ProcessorHarness(store, clock=clock)
    messages = []
    for cust_id in ("bad", "c"):
        submission = task_submission(TASK, cust_id, frozenset(), "k")
        decisions = await harness.admission.admit([Request(submission, Customer(cust_id=cust_id))])
        await harness.admission.release(decisions, refund=False)
        messages.append(admitted_delivery(Admitted(submission, decisions[0].entry.created_at, 604_800)))
    clock.now += DOUBT / 2
    assert await harness.admission.refund_doubts() == 2
    await store.save_customer(CUSTOMER)
    store.unreadable = {"bad"}
    store.undecided, store.operations = {task_id("k")}, {"claim"}
    assert accepted(await harness.attempt(*messages, direct_delivery("good"))) == [task_id("good")]
    assert harness.undecided == messages
    store.undecided = set()
    assert accepted(await harness.attempt(*messages)) == [task_id("k")]
    assert harness.undecided == messages[:1]
    await store.close()


async def test_attempt_in_an_outage_fails_after_two_look_ups(harness: ProcessorHarness, store: PartialStore) -> None:
    """While the store hangs, each one takes seconds."""
    deliveries = [direct_delivery("m", cust_id=f"c{number}") for number in range(10)]
    store.unreadable = {f"c{number}" for number in range(10)}
    assert await harness.attempt(*deliveries) == []
    assert (harness.unavailable, len(store.looked_up)) == (deliveries, 2)


async def test_customers_whose_records_could_not_be_read_are_looked_up_last(
    harness: ProcessorHarness, store: PartialStore
) -> None:
    """Otherwise two of them would look like an outage in every attempt."""
    bad = [direct_delivery("m", cust_id=cust_id) for cust_id in ("bad", "worse")]
    good = direct_delivery("good")
    store.unreadable = {"bad", "worse"}
    assert await harness.attempt(*bad, good) == []
    assert accepted(await harness.attempt(*bad, good)) == [task_id("good")]
    assert harness.undecided == bad


async def test_worker_finishes_others_while_the_store_never_decides_one(tmp_path: Path, store: PartialStore) -> None:
    """Each attempt at the one alone looks like an outage, so the circuit opens again and again."""
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    breaker = CircuitBreaker(backoff=Backoff(0.01, 0.01))
    store.undecided = {task_id("m0")}
    async with WorkerHarness(store, broker, {topology.INGEST_TASKS: 10}, circuit_breaker=breaker) as harness:
        await harness.submit(1)
        await eventually(lambda: harness.worker.breaker.trials >= 3)
        for _ in range(5):
            await harness.submit(10)
            events = await harness.take(topology.CONSENSUS_TASKS, 10)
            assert task_id("m0") not in accepted([event.message_id or "" for event in events])
        store.undecided = set()
        (event,) = await harness.take(topology.CONSENSUS_TASKS, 1)
        assert accepted([event.message_id or ""]) == [task_id("m0")]
    await broker.close()
