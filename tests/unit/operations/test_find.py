"""A submission is found in each of its states by its id, key or message_id, in the ledger."""

from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest

from ingest.backends import DeadLetterAccess
from ingest.domain.errors import BrokerUnavailable, StoreUnavailable
from ingest.domain.events import acceptance_id
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.ledger import UNDECIDED, StoredEntry, Undecided
from ingest.domain.ports import Store
from ingest.operations.find import Findings, find, search_queue
from tests.support.admission_harness import CUSTOMER, batch, task
from tests.support.find_harness import LEASE, TRACE, FindHarness, OpenStore


async def test_accepted_task_is_found_by_its_key_and_by_its_id(harness: FindHarness) -> None:
    request = msgspec.structs.replace(task("k"), request_id="req-1", trace=TRACE)
    (stored,) = await harness.accept(request)
    by_key = await harness.find("k")
    (entry,) = by_key.entries
    assert (entry.kind, entry.id, entry.cust_id) == (SubmissionKind.TASK, keyed_id(SubmissionKind.TASK, "c", "k"), "c")
    assert entry.state == "accepted: all its events are confirmed"
    assert (entry.event_id, entry.event_confirmed) == (acceptance_id(entry.id, stored.created_at), True)
    assert (entry.request_id, entry.trace_id) == ("req-1", TRACE.trace_id)
    assert entry.created_at == harness.clock()
    assert entry.remembered_until - entry.changed_at == pytest.approx(CUSTOMER.retention)
    assert (by_key.dead_letters, by_key.missing) == ([], [])
    by_id = await harness.find(entry.id)
    assert [found.id for found in by_id.entries] == [entry.id]


async def test_state_says_how_far_a_submission_has_come(harness: FindHarness) -> None:
    await harness.admit(task("held"))
    assert await harness.states("held") == ["claimed: a request or a worker deals with it now"]
    harness.clock.now += LEASE + 1
    assert (await harness.states("held"))[0].startswith("claimed, and its lease has ended: it may wait for a worker")
    await harness.queue(task("queued"))
    assert await harness.states("queued") == ["queued: it waits for a worker"]
    harness.clock.now += 3601
    await harness.admit(task("queued"))
    assert (await harness.states("queued"))[0].startswith("queued, and being published again")


async def test_claim_that_was_given_back_says_what_a_repeat_does(harness: FindHarness) -> None:
    for key, refund in (("doubt", False), ("returned", True)):
        decision = await harness.admit(task(key))
        await harness.admission.release([decision], refund=refund)
    (doubt,) = (await harness.find("doubt")).entries
    assert doubt.state.startswith("claimed, and not confirmed by the broker, so it may wait for a worker")
    assert not doubt.event_confirmed
    assert all("a repeat with the same key, if it has one" in state for state in await harness.states("returned"))


async def test_items_are_found_with_their_batch(harness: FindHarness) -> None:
    """One without a key by its id, one with a key also by that."""
    request = msgspec.structs.replace(batch("i", None, key="b"), request_id="req-2", trace=TRACE)
    batch_entry, item_entry = await harness.accept(request)
    (whole,) = (await harness.find("b")).entries
    assert (whole.kind, whole.task_count) == (SubmissionKind.BATCH, 2)
    keyed_item, unkeyed_item = batch_entry.task_ids
    (unkeyed,) = (await harness.find(unkeyed_item)).entries
    assert (unkeyed.batch_id, unkeyed.batch_index, unkeyed.message_id) == (batch_entry.id, 1, "")
    assert unkeyed.event_id == acceptance_id(unkeyed_item, batch_entry.created_at)
    (keyed,) = (await harness.find("i")).entries
    assert (keyed.id, keyed.batch_id, keyed.batch_index) == (keyed_item, batch_entry.id, None)
    assert keyed.id == item_entry.id
    for item in (whole, unkeyed, keyed):
        assert (item.request_id, item.trace_id, item.message_id) == ("req-2", TRACE.trace_id, "")
    beyond_the_end = (await harness.find(unkeyed_item[:-1] + "9")).entries
    assert beyond_the_end == []


async def test_message_id_that_looks_like_a_batch_is_not_its_batch(harness: FindHarness) -> None:
    """A producer chooses it freely."""
    await harness.accept(batch(None, key="b"))
    lookalike = keyed_id(SubmissionKind.BATCH, "c", "b")
    await harness.accept(msgspec.structs.replace(task("own key"), origin=lookalike))
    (entry,) = (await harness.find("own key")).entries
    assert (entry.batch_id, entry.message_id) == ("", lookalike)


async def test_key_that_looks_like_an_id_is_found_if_no_submission_has_that_id(harness: FindHarness) -> None:
    unknown = keyed_id(SubmissionKind.TASK, "c", "unknown")
    (entry,) = await harness.accept(task(unknown))
    assert [found.id for found in (await harness.find(unknown)).entries] == [entry.id]


async def test_item_whose_batch_is_forgotten_has_no_message_id(harness: FindHarness) -> None:
    """The batch without a key is remembered for a day, the item for longer."""
    await harness.accept(batch("i", None))
    harness.clock.now += 2 * 86_400
    (entry,) = (await harness.find("i")).entries
    assert (entry.batch_id, entry.message_id) == ("", "")


async def test_request_and_trace_stay_when_a_worker_admits_the_message_again(harness: FindHarness) -> None:
    request = msgspec.structs.replace(task("k"), request_id="req-1", trace=TRACE)
    await harness.admit(request)
    harness.clock.now += LEASE + 1
    await harness.admit(task("k"))
    (entry,) = (await harness.find("k")).entries
    assert (entry.request_id, entry.trace_id) == ("req-1", TRACE.trace_id)
    harness.clock.now += LEASE + 1
    await harness.admit(msgspec.structs.replace(request, request_id="req-2", trace=None))
    (entry,) = (await harness.find("k")).entries
    assert entry.request_id == "req-2"


async def test_customer_that_does_not_exist_is_said(harness: FindHarness) -> None:
    assert (await harness.find("k", "acne")).customer_exists is False
    assert (await harness.find("k", "c")).customer_exists is True
    assert (await harness.find("k")).customer_exists is None


async def test_customer_restricts_both_entries_and_letters(harness: FindHarness) -> None:
    other = msgspec.structs.replace(CUSTOMER, cust_id="other")
    await harness.store.save_customer(other)
    await harness.accept(task("k"))
    await harness.accept(task("k", other))
    harness.reject("k", cust_id="other")
    everybody = await harness.find("k")
    assert sorted(entry.cust_id for entry in everybody.entries) == ["c", "other"]
    assert everybody.dead_letter_count == 1
    own = await harness.find("k", "c")
    assert ([entry.cust_id for entry in own.entries], own.dead_letters) == (["c"], [])
    of_another = keyed_id(SubmissionKind.TASK, "other", "k")
    assert (await harness.find(of_another, "c")).entries == []


async def test_nothing_is_found_without_an_entry_or_a_letter(harness: FindHarness) -> None:
    assert await harness.find("nothing") == Findings()


async def test_letters_are_found_while_the_ledger_is_unavailable(harness: FindHarness) -> None:
    harness.reject("m1")

    async def closed() -> Store:
        await harness.store.close()
        return harness.store

    async def no_store() -> Store:
        raise StoreUnavailable("no cluster")

    findings = await find("m1", no_store, search_queue(harness.letters.open))
    assert (findings.dead_letter_count, findings.missing) == (1, ["the ledger: no cluster"])
    findings = await find("m1", closed, search_queue(harness.letters.open))
    assert findings.dead_letter_count == 1
    assert [part.partition(":")[0] for part in findings.missing] == [
        "the customers",
        "the ledger",
    ]


async def test_entries_are_found_while_the_dead_letters_are_unavailable(harness: FindHarness) -> None:
    await harness.accept(task("k"))

    def no_broker(*, change: bool) -> AbstractAsyncContextManager[DeadLetterAccess]:
        assert not change
        raise BrokerUnavailable("no connection")

    findings = await find("k", harness.open_store, search_queue(no_broker))
    assert (len(findings.entries), findings.missing) == (1, ["the dead letters: no connection"])


async def test_record_that_cannot_be_read_now_is_named(harness: FindHarness) -> None:
    await harness.accept(task("k"))
    task_id = keyed_id(SubmissionKind.TASK, "c", "k")

    class PartlyUndecided(OpenStore):
        async def inspect(self, ids: Any) -> Any:
            stored: list[StoredEntry | Undecided | None] = list(await super().inspect(ids))
            return [UNDECIDED if id_ != task_id else found for id_, found in zip(ids, stored, strict=True)]

    async def open_store() -> Store:
        return PartlyUndecided(harness.store)

    findings = await find("k", open_store, search_queue(harness.letters.open))
    assert [entry.id for entry in findings.entries] == [task_id]
    assert findings.missing == ["1 record of the ledger, which cannot be read now"]
