"""Event ids: one for all copies of an acceptance, another one for the next acceptance of the same key."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.admission import Request
from ingest.domain import admitted
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.events import acceptance_id, rfc3339
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.ledger import Change, Step
from ingest.domain.messages import Delivery, PublishOutcome
from ingest.domain.submissions import batch_submission, task_submission
from ingest.shim.pipeline import SubmissionPipeline
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.fakes import Clock, ScriptedPublisher, UnreliableStore
from tests.support.tasks import TASK
from tests.support.worker_harness import ProcessorHarness

RETENTION = 3600
CUSTOMER = Customer(cust_id="c", retention=RETENTION)
OTHER: dict[str, Any] = TASK | {"data_url": "https://a.example/other"}
TASK_ID = keyed_id(SubmissionKind.TASK, "c", "k")
BATCH_ID = keyed_id(SubmissionKind.BATCH, "c", "b")
BATCH = {"tasks": [TASK, TASK | {"idempotency_key": "k"}]}
"""Its first item has the id of the batch with the index 0, its second one is the task with the key k."""
ITEM_ID = batch_submission(BATCH, "c", frozenset(), "b").tasks[0].task_id


@pytest.fixture
def clock() -> Clock:
    return Clock(1_775_000_000.25)


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[UnreliableStore]:
    store = await UnreliableStore.open(tmp_path / "s.db", clock=clock)
    await store.save_customer(CUSTOMER)
    yield store
    await store.close()


def milliseconds(clock: Clock) -> int:
    return int(clock.now * 1000)


async def lose(store: UnreliableStore, *ids: str) -> None:
    """Delete ledger entries, as a store does that loses records."""
    for entry in await store.read(ids):
        assert entry is not None
        assert await store.apply([Change(Step.FORGET, entry)]) == [entry]


async def shim_message(harness: ProcessorHarness, body: dict[str, Any], key: str) -> Delivery:
    """Submit a task or a batch as the shim does; return its message."""
    make = batch_submission if "tasks" in body else task_submission
    publisher = ScriptedPublisher()
    await SubmissionPipeline(harness.admission, publisher).run([Request(make(body, "c", frozenset(), key), CUSTOMER)])
    return admitted_delivery(admitted.from_body(publisher.sent[0].body))


async def message_in_doubt(harness: ProcessorHarness, key: str) -> Delivery:
    """Submit a task as the shim does, without an answer of the broker; return its message, which arrives late."""
    publisher = ScriptedPublisher(PublishOutcome.UNKNOWN)
    request = Request(task_submission(TASK, "c", frozenset(), key), CUSTOMER)
    await SubmissionPipeline(harness.admission, publisher).run([request])
    return admitted_delivery(admitted.from_body(publisher.sent[0].body))


def event(harness: ProcessorHarness, event_id: str) -> dict[str, Any]:
    """The event with this id among those of the last attempt."""
    (body,) = [message.body for message in harness.publisher.sent if message.message_id == event_id]
    decoded: dict[str, Any] = json.loads(body)
    assert decoded["id"] == event_id
    return decoded


@pytest.mark.parametrize("body", [TASK, OTHER], ids=["same body", "other body"])
async def test_acceptance_after_retention_has_another_id(
    harness: ProcessorHarness, clock: Clock, body: dict[str, Any]
) -> None:
    first = await harness.attempt(direct_delivery("k"))
    assert first == [acceptance_id(TASK_ID, milliseconds(clock))]
    clock.now += RETENTION
    second = await harness.attempt(direct_delivery("k", body))
    assert second == [acceptance_id(TASK_ID, milliseconds(clock))]
    clock.now += RETENTION
    third = await harness.attempt(await shim_message(harness, body, "k"))
    assert third == [acceptance_id(TASK_ID, milliseconds(clock))]


async def test_batch_accepted_after_retention_has_other_ids(harness: ProcessorHarness, clock: Clock) -> None:
    for _ in range(2):
        created_at = milliseconds(clock)
        assert await harness.attempt(direct_delivery("b", BATCH)) == [
            acceptance_id(id_, created_at) for id_ in (ITEM_ID, TASK_ID, BATCH_ID)
        ]
        clock.now += RETENTION


async def test_event_has_the_creation_time_of_its_entry(harness: ProcessorHarness, clock: Clock) -> None:
    (event_id,) = await harness.attempt(direct_delivery("k"))
    time = rfc3339(milliseconds(clock))
    body = event(harness, event_id)
    assert (body["time"], body["data"]["created_at"]) == (time, time)


async def test_shim_message_whose_entries_were_lost_keeps_its_ids(
    harness: ProcessorHarness, store: UnreliableStore, clock: Clock
) -> None:
    """An item that was claimed before its batch has its own creation time, which is in the message."""
    late = await message_in_doubt(harness, "k")
    clock.now += 7
    message = await shim_message(harness, BATCH, "b")
    first = await harness.attempt(message)
    assert first == [
        acceptance_id(ITEM_ID, milliseconds(clock)),
        acceptance_id(TASK_ID, milliseconds(clock) - 7000),
        acceptance_id(BATCH_ID, milliseconds(clock)),
    ]
    await lose(store, TASK_ID, BATCH_ID)
    clock.now += 7
    assert await harness.attempt(message) == first
    await lose(store, TASK_ID)
    assert await harness.attempt(late) == [first[1]]


async def test_direct_message_with_a_timestamp_keeps_its_ids_after_its_entries_were_lost(
    harness: ProcessorHarness, store: UnreliableStore, clock: Clock
) -> None:
    sent_at = int(clock.now) - 10
    first = await harness.attempt(direct_delivery("b", BATCH, timestamp=sent_at))
    assert first == [acceptance_id(id_, sent_at * 1000) for id_ in (ITEM_ID, TASK_ID, BATCH_ID)]
    await lose(store, TASK_ID, BATCH_ID)
    clock.now += 7
    assert await harness.attempt(direct_delivery("b", BATCH, timestamp=sent_at, redelivered=True)) == first


async def test_direct_message_without_a_timestamp_is_another_acceptance_after_its_entry_was_lost(
    harness: ProcessorHarness, store: UnreliableStore, clock: Clock
) -> None:
    first = await harness.attempt(direct_delivery("k"))
    await lose(store, TASK_ID)
    clock.now += 7
    second = await harness.attempt(direct_delivery("k", redelivered=True))
    assert (len(second), set(first) & set(second)) == (1, set())


async def test_creation_time_of_an_entry_wins_over_the_timestamp(harness: ProcessorHarness, clock: Clock) -> None:
    """A worker crashed after its claim; the message that continues it says another time."""
    request = Request(task_submission(TASK, "c", frozenset(), "k"), CUSTOMER, "k")
    await harness.admission.admit([request])
    created_at = milliseconds(clock)
    clock.now += 31
    message = direct_delivery("k", redelivered=True, timestamp=int(clock.now) - 5)
    assert await harness.attempt(message) == [acceptance_id(TASK_ID, created_at)]


@pytest.mark.parametrize("is_direct", [False, True], ids=["shim", "direct"])
@pytest.mark.parametrize("can_settle", [True, False], ids=["settled", "crash before settling"])
@pytest.mark.parametrize("batch_is_first", [True, False], ids=["batch first", "task first"])
async def test_task_that_a_batch_has_taken_over_has_one_id(
    harness: ProcessorHarness,
    store: UnreliableStore,
    clock: Clock,
    *,
    is_direct: bool,
    can_settle: bool,
    batch_is_first: bool,
) -> None:
    """The publish of a task was in doubt. A batch with the task's key took it over, and both messages arrived."""
    expected = acceptance_id(TASK_ID, milliseconds(clock))
    task = await message_in_doubt(harness, "k")
    clock.now += 7
    batch = direct_delivery("b", BATCH) if is_direct else await shim_message(harness, BATCH, "b")
    order = (batch, task) if batch_is_first else (task, batch)
    store.can_settle = can_settle
    published = [event_id for message in order for event_id in await harness.attempt(message)]
    store.can_settle = True
    clock.now += 31
    published += [event_id for message in order for event_id in await harness.attempt(message)]
    assert {event_id for event_id in published if event_id.startswith(TASK_ID)} == {expected}
    assert await store.read([TASK_ID]) != [None]


async def test_item_that_is_published_again_after_a_crash_keeps_its_id(
    harness: ProcessorHarness, store: UnreliableStore, clock: Clock
) -> None:
    """A worker has settled the item, which is older than its batch, and crashed before it settled the batch."""
    await message_in_doubt(harness, "k")
    created_at = milliseconds(clock)
    clock.now += 7
    request = Request(batch_submission(BATCH, "c", frozenset(), "b"), CUSTOMER, "b")
    (decision,) = await harness.admission.admit([request])
    await harness.admission.accepted(decision.owned[1:])
    clock.now += 31
    published = await harness.attempt(direct_delivery("b", BATCH, redelivered=True))
    assert acceptance_id(TASK_ID, created_at) in published
    body = event(harness, acceptance_id(TASK_ID, created_at))
    assert body["time"] == body["data"]["created_at"] == rfc3339(created_at)


async def test_accepted_item_is_not_published_again_with_another_body(
    harness: ProcessorHarness, store: UnreliableStore, clock: Clock
) -> None:
    """The store has lost the entry of its batch, and the batch's key is used again with other items."""
    await harness.attempt(direct_delivery("b", BATCH))
    await lose(store, BATCH_ID)
    clock.now += 7
    again = {"tasks": [OTHER, OTHER | {"idempotency_key": "k"}]}
    expected = [acceptance_id(id_, milliseconds(clock)) for id_ in (ITEM_ID, BATCH_ID)]
    assert await harness.attempt(direct_delivery("b", again)) == expected
    assert event(harness, expected[-1])["data"]["replayed_task_ids"] == [TASK_ID]


async def test_duplicate_of_another_acceptance_has_another_id(harness: ProcessorHarness, clock: Clock) -> None:
    ids = []
    for _ in range(2):
        await harness.attempt(direct_delivery("k"))
        repeat = direct_delivery("r", TASK | {"idempotency_key": "k"})
        ids += await harness.attempt(repeat)
        assert await harness.attempt(msgspec.structs.replace(repeat, redelivered=True)) == ids[-1:]
        clock.now += RETENTION
    assert len(set(ids)) == len(ids) == 2


async def test_duplicates_with_different_bodies_have_different_ids(harness: ProcessorHarness) -> None:
    """A consumer that drops events with known ids must see the mismatch."""
    await harness.attempt(direct_delivery("k"))
    same = await harness.attempt(direct_delivery("k"))
    other = await harness.attempt(direct_delivery("k", OTHER))
    assert (len(other), set(same) & set(other)) == (1, set())


async def test_message_that_moves_to_the_end_of_its_queue_keeps_its_timestamp(harness: ProcessorHarness) -> None:
    assert await harness.move_to_end(direct_delivery("k", timestamp=5)) == []
    assert [message.timestamp for message in harness.publisher.sent] == [5]


def test_shim_message_of_an_earlier_version_has_no_creation_times_of_items() -> None:
    """Shims of both versions run during a deploy."""
    submission = task_submission(TASK, "c", frozenset(), "k")
    fields = json.loads(admitted.to_message(Admitted(submission, 1, 60)).body)
    del fields["item_created_at"]
    assert admitted.from_body(json.dumps(fields).encode()).item_created_at == {}
