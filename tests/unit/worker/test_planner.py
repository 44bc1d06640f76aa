"""Planning a micro-batch: what is admitted, read and held back, on a real ledger."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.admission import DOUBT, Request
from ingest.domain.admitted import Admitted, to_message
from ingest.domain.customers import Customer
from ingest.domain.errors import Reason
from ingest.domain.ledger import Change, Entry, Phase, Step
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.submissions import Submission, batch_submission, task_submission
from ingest.store.sqlite import SqliteStore
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.fakes import Clock, ScriptedPublisher, used
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness

CUSTOMER = Customer(cust_id="c", monthly_quota=100)
STRICT = Customer(cust_id="strict", strict=True)
OTHER: dict[str, Any] = TASK | {"data_url": "https://a.example/other"}


class WatchedStore(SqliteStore):
    """A store that records its calls. After a read, another attempt takes over the entries in `taken_over`."""

    def prepare(self) -> None:
        self.calls: list[str] = []
        self.taken_over: list[Entry] = []

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        self.calls.append("read")
        entries = await super().read(ids)
        await super().apply([Change(Step.TAKE_OVER, entry) for entry in self.taken_over])
        return entries

    async def claim(self, entries: Sequence[Entry]) -> list[Entry]:
        self.calls.append("claim")
        return await super().claim(entries)

    async def apply(self, changes: Sequence[Change]) -> list[Entry | None]:
        self.calls.append("apply")
        return await super().apply(changes)


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[WatchedStore]:
    store = await WatchedStore.open(tmp_path / "s.db", clock=clock)
    store.prepare()
    for customer in (CUSTOMER, STRICT):
        await store.save_customer(customer)
    yield store
    await store.close()


async def entries_of(store: SqliteStore, submission: Submission) -> list[Entry]:
    ids = [submission.id, *dict.fromkeys(task.task_id for task in submission.tasks if task.keyed)]
    return [entry for entry in await store.read(ids) if entry is not None]


async def leave_in_doubt(harness: ProcessorHarness, submission: Submission, customer: Customer = CUSTOMER) -> Delivery:
    """Admit a submission as the shim does, without an answer to its publish; return its message."""
    decisions = await harness.admission.admit([Request(submission, customer)])
    await harness.admission.release(decisions, refund=False)
    return admitted_delivery(Admitted(submission, decisions[0].entry.created_at, customer.retention))


def single(key: str = "k", cust_id: str = "c") -> Submission:
    return task_submission(TASK, cust_id, frozenset(), key)


def published(harness: ProcessorHarness) -> list[tuple[str, Any]]:
    """The types of the last attempt's events, each with its reason or mismatch if it has one."""
    decoded = [json.loads(message.body) for message in harness.publisher.sent if message.exchange == "asg.events"]
    return [
        (
            event["type"].rpartition("asgrefinery.")[2],
            event["data"].get("reason", event["data"].get("payload_mismatch")),
        )
        for event in decoded
    ]


async def test_direct_submission_is_admitted_and_the_shims_is_read(
    harness: ProcessorHarness, store: WatchedStore
) -> None:
    """Neither makes the other's calls, because every call costs time."""
    await harness.attempt(direct_delivery("k"))
    assert store.calls == ["claim"]
    store.calls.clear()
    await harness.attempt(admitted_delivery(Admitted(single("other"), 1_775_000_000_000, 604_800)))
    assert store.calls == ["read"]
    store.calls.clear()
    await harness.attempt(direct_delivery("wrong", {}))
    assert store.calls == []


async def test_deliveries_of_every_kind_can_share_a_micro_batch(harness: ProcessorHarness, store: WatchedStore) -> None:
    """The one whose service user is unknown is held until the setting is corrected."""
    admitted = Admitted(single("shim"), 1_775_000_000_000, 604_800)
    unknown = admitted_delivery(admitted, user_id="shim-2")
    refunded = await leave_in_doubt(harness, single("refunded"))
    store._clock = Clock(1_775_000_000.0 + DOUBT)
    assert await harness.admission.refund_doubts() == 1
    deliveries = [
        direct_delivery("direct"),
        unknown,
        admitted_delivery(admitted),
        direct_delivery("wrong", {}),
        refunded,
    ]
    await harness.attempt(*deliveries)
    assert sorted(kind for kind, _ in published(harness)) == [*["submission.rejected"], *["task.accepted"] * 3]
    assert harness.unfinished.deliveries == harness.unfinished.untrusted == [unknown]


async def test_submission_in_doubt_is_made_durable_before_its_events_are_published(
    store: WatchedStore, clock: Clock
) -> None:
    """Then it can neither be refunded nor taken over, even if the worker crashes before it settles."""
    batch = batch_submission({"tasks": [TASK, TASK | {"idempotency_key": "x"}]}, "c", frozenset(), "b")
    phases: list[list[Phase]] = []

    class WatchingPublisher(ScriptedPublisher):
        async def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
            phases.append([entry.phase for entry in await entries_of(store, batch)])
            return await super().publish(messages)

    harness = ProcessorHarness(store, clock=clock, publisher=WatchingPublisher())
    await harness.attempt(await leave_in_doubt(harness, batch))
    assert phases[0] == [Phase.QUEUED, Phase.QUEUED]
    assert [entry.phase for entry in await entries_of(store, batch)] == [Phase.ACCEPTED, Phase.ACCEPTED]


@pytest.mark.parametrize("taken", [0, 1], ids=["batch", "item"])
async def test_submission_that_another_attempt_takes_over_meanwhile_is_held_back(
    harness: ProcessorHarness, store: WatchedStore, taken: int
) -> None:
    batch = batch_submission({"tasks": [TASK, TASK | {"idempotency_key": "x"}]}, "c", frozenset(), "b")
    message = await leave_in_doubt(harness, batch)
    entry = (await entries_of(store, batch))[taken]
    store.taken_over = [msgspec.structs.replace(entry, owner="another", lease=30_000)]
    other = direct_delivery("k")
    await harness.attempt(message, other)
    assert published(harness) == [("task.accepted", None)]
    assert (harness.unfinished.contended, harness.consumer.acked) == ([message], [other])


async def test_refunded_submission_of_a_deleted_customer_stays_accepted(tmp_path: Path, clock: Clock) -> None:
    """It has no quota any more."""
    store = await SqliteStore.open(tmp_path / "other.db", clock=clock)
    harness = ProcessorHarness(store, clock=clock)
    message = await leave_in_doubt(harness, single())
    clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    await harness.attempt(message)
    assert published(harness) == [("task.accepted", None)]
    assert (await used(store), len(harness.consumer.acked)) == (1, 1)
    await store.close()


async def test_refunded_submission_that_exceeds_the_quota_now_is_rejected(
    harness: ProcessorHarness, store: WatchedStore, clock: Clock
) -> None:
    """Its client was answered 503, so it may have given up. The other one of the micro-batch fits into the quota."""
    messages = [await leave_in_doubt(harness, single(key)) for key in ("a", "b")]
    clock.now += DOUBT / 2
    await harness.admission.refund_doubts()
    await store.save_customer(Customer(cust_id="c", monthly_quota=1))
    await harness.attempt(*messages)
    assert sorted(published(harness), key=str) == [
        ("submission.rejected", Reason.QUOTA_EXHAUSTED),
        ("task.accepted", None),
    ]
    assert await used(store) == 1


async def test_repeat_of_a_direct_message_is_a_duplicate_unless_only_its_ack_was_lost(
    harness: ProcessorHarness, store: WatchedStore
) -> None:
    """A producer that publishes twice gets an event, a redelivered message none."""
    await harness.attempt(direct_delivery("k"))
    await harness.attempt(direct_delivery("k"))
    assert published(harness) == [("submission.duplicate", False)]
    await harness.attempt(direct_delivery("k", redelivered=True))
    assert published(harness) == []
    assert (len(harness.consumer.acked), await used(store)) == (3, 1)


async def test_redelivered_message_whose_key_another_submission_has_is_a_duplicate(
    harness: ProcessorHarness,
) -> None:
    """The key was used over HTTP."""
    (decision,) = await harness.admission.admit([Request(single(), CUSTOMER)])
    await harness.admission.queued([decision])
    await harness.attempt(direct_delivery("k", redelivered=True))
    assert published(harness) == [("submission.duplicate", False)]


@pytest.mark.parametrize("cust_id", ["c", "strict"])
async def test_same_body_under_a_used_key_is_a_duplicate_for_every_customer(
    harness: ProcessorHarness, cust_id: str
) -> None:
    await harness.attempt(direct_delivery("k", cust_id=cust_id))
    await harness.attempt(direct_delivery("k", cust_id=cust_id))
    assert published(harness) == [("submission.duplicate", False)]


@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize(
    ("cust_id", "expected"),
    [("c", ("submission.duplicate", True)), ("strict", ("submission.rejected", Reason.KEY_CONFLICT))],
)
async def test_other_body_under_a_used_key_is_reported_or_rejected_as_the_customer_wants(
    harness: ProcessorHarness, cust_id: str, expected: tuple[str, Any], redelivered: bool
) -> None:
    await harness.attempt(direct_delivery("k", cust_id=cust_id))
    await harness.attempt(direct_delivery("k", OTHER, cust_id=cust_id, redelivered=redelivered))
    assert published(harness) == [expected]


async def test_direct_submissions_beyond_the_quota_are_rejected_one_by_one(
    harness: ProcessorHarness, store: WatchedStore
) -> None:
    await store.save_customer(Customer(cust_id="c", monthly_quota=1))
    await harness.attempt(direct_delivery("a"), direct_delivery("b"))
    assert sorted(kind for kind, _ in published(harness)) == ["submission.rejected", "task.accepted"]
    assert len(harness.consumer.acked) == 2


async def test_direct_submission_waits_while_another_attempt_holds_its_key(
    harness: ProcessorHarness, clock: Clock
) -> None:
    """The others of its micro-batch do not."""
    await harness.admission.admit([Request(single(), CUSTOMER)])
    held, other = direct_delivery("k"), direct_delivery("other")
    await harness.attempt(held, other)
    assert (harness.unfinished.contended, harness.consumer.acked) == ([held], [other])
    clock.now += 30
    await harness.attempt(held)
    assert harness.consumer.acked == [other, held]


def routing_keys(harness: ProcessorHarness) -> list[str]:
    return [message.routing_key for message in harness.publisher.sent if message.exchange == "asg.events"]


async def test_report_goes_to_the_producer(harness: ProcessorHarness) -> None:
    await harness.attempt(direct_delivery("k"))
    await harness.attempt(direct_delivery("k"), direct_delivery("wrong", {}))
    assert sorted(routing_keys(harness)) == ["submission.duplicate.c", "submission.rejected.c"]


async def test_user_that_submits_for_another_customer_is_told_and_the_customer_is_not(
    harness: ProcessorHarness,
) -> None:
    """Otherwise it could fill the feedback queue of that customer."""
    await harness.attempt(
        direct_delivery("k", user_id="mallory"), direct_delivery("k2", routing_key="task.submitted", user_id=None)
    )
    assert sorted(routing_keys(harness)) == ["submission.rejected", "submission.rejected.mallory"]


async def test_events_name_the_idempotency_key(harness: ProcessorHarness) -> None:
    """A single task has that of its submission; an item of a batch has only its own."""
    own = TASK | {"idempotency_key": 'i"1'}
    await harness.attempt(direct_delivery("k"), direct_delivery("b", {"tasks": [TASK, own]}))
    data = [json.loads(message.body)["data"] for message in harness.publisher.sent]
    named = [(one.get("task_id", "")[:4], one.get("batch_index"), one.get("idempotency_key")) for one in data]
    assert sorted(named, key=str) == [("", None, "b"), ("tsk_", 0, None), ("tsk_", 1, 'i"1'), ("tsk_", None, "k")]


async def test_report_about_a_body_that_was_read_names_its_key(harness: ProcessorHarness) -> None:
    """A producer may publish a body with a key under another message_id."""
    for number in range(2):
        body = TASK | {"idempotency_key": "k", "data_url": f"https://a.example/{number}"}
        await harness.attempt(direct_delivery(f"m{number}", body, cust_id="strict"))
    report = json.loads(harness.publisher.sent[-1].body)["data"]
    assert (report["message_id"], report["idempotency_key"], report["reason"]) == ("m1", "k", Reason.KEY_CONFLICT)


async def test_item_key_is_unknown_if_the_shim_is_of_an_earlier_version(harness: ProcessorHarness) -> None:
    batch = batch_submission({"tasks": [TASK | {"idempotency_key": "x"}]}, "c", frozenset(), "b")
    message = msgspec.json.decode(to_message(Admitted(batch, 1_775_000_000_000, 604_800)).body)
    assert message["submission"]["tasks"][0].pop("key") == "x"
    delivery = admitted_delivery(Admitted(batch, 1_775_000_000_000, 604_800))
    await harness.attempt(msgspec.structs.replace(delivery, body=msgspec.json.encode(message)))
    first, _ = [json.loads(message.body)["data"] for message in harness.publisher.sent]
    assert (first["batch_index"], "idempotency_key" in first) == (0, False)
