"""A submission is found in each of its states by its id, key or message_id, in the ledger and in the dead letters."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.admission import Admission, Decision, Request
from ingest.backends import DeadLetterAccess
from ingest.domain.admitted import to_message
from ingest.domain.dead_letters import dead_letter, read
from ingest.domain.errors import BrokerUnavailable, InvalidSubmission, Reason, StoreUnavailable
from ingest.domain.events import acceptance_id
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.ledger import UNDECIDED, Entry, StoredEntry, Undecided
from ingest.domain.messages import Message
from ingest.domain.ports import Store
from ingest.domain.topology import DEAD
from ingest.domain.trace import Trace
from ingest.domain.trimming import trimmed_letter
from ingest.operations.find import MAX_DEAD_LETTERS, Findings, find, search_queue
from ingest.store.sqlite import SqliteStore
from tests.support.admission_harness import CUSTOMER, batch, body, task
from tests.support.dead_letter_queue import SERVICE, MemoryDeadLetters
from tests.support.deliveries import direct_delivery
from tests.support.fakes import Clock

TRACE = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
DIED = "2026-04-09T12:00:00Z"
LEASE = 30


class Harness:
    """A ledger with one customer and a clock, and dead letters."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.letters = MemoryDeadLetters()
        self.admission = Admission(store, lease=LEASE, clock=clock, monotonic=clock)

    async def admit(self, request: Request) -> Decision:
        return (await self.admission.admit([request]))[0]

    async def queue(self, request: Request) -> Decision:
        decision = await self.admit(request)
        await self.admission.queued([decision])
        return decision

    async def accept(self, request: Request) -> list[Entry]:
        decision = await self.queue(request)
        entries = list(decision.owned)
        assert all(await self.store.accept(entries))
        return entries

    async def open_store(self) -> Store:
        return _Open(self.store)

    async def find(self, sought: str, customer: str | None = None) -> Findings:
        return await find(sought, self.open_store, search_queue(self.letters.open), customer)

    async def states(self, sought: str) -> list[str]:
        return [entry.state for entry in (await self.find(sought)).entries]

    def reject(self, key: str | None, reason: Reason = Reason.QUOTA_EXHAUSTED, **changes: Any) -> None:
        """Add the dead letter of a direct submission with this message_id."""
        fields: dict[str, Any] = {"cust_id": "c"} | changes
        delivery = direct_delivery(key or "", **fields)
        message = dead_letter(delivery, InvalidSubmission(reason, "no quota is left"), DIED)
        self.letters.add(msgspec.structs.replace(message, headers=message.headers | TRACE.headers()))


class _Open(SqliteStore):
    """The store, which stays open for further searches."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store._file, store._clock)

    async def close(self) -> None:
        """The fixture closes it."""


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    clock = Clock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    await store.save_customer(CUSTOMER)
    yield Harness(store, clock)
    await store.close()


async def test_accepted_task_is_found_by_its_key_and_by_its_id(harness: Harness) -> None:
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


async def test_state_says_how_far_a_submission_has_come(harness: Harness) -> None:
    await harness.admit(task("held"))
    assert await harness.states("held") == ["claimed: a request or a worker deals with it now"]
    harness.clock.now += LEASE + 1
    assert (await harness.states("held"))[0].startswith("claimed, and its lease has ended: it may wait for a worker")
    await harness.queue(task("queued"))
    assert await harness.states("queued") == ["queued: it waits for a worker"]
    harness.clock.now += 3601
    await harness.admit(task("queued"))
    assert (await harness.states("queued"))[0].startswith("queued, and being published again")


async def test_claim_that_was_given_back_says_what_a_repeat_does(harness: Harness) -> None:
    for key, refund in (("doubt", False), ("returned", True)):
        decision = await harness.admit(task(key))
        await harness.admission.release([decision], refund=refund)
    (doubt,) = (await harness.find("doubt")).entries
    assert doubt.state.startswith("claimed, and not confirmed by the broker, so it may wait for a worker")
    assert not doubt.event_confirmed
    assert all("a repeat with the same key, if it has one" in state for state in await harness.states("returned"))


async def test_items_are_found_with_their_batch(harness: Harness) -> None:
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


async def test_message_id_that_looks_like_a_batch_is_not_its_batch(harness: Harness) -> None:
    """A producer chooses it freely."""
    await harness.accept(batch(None, key="b"))
    lookalike = keyed_id(SubmissionKind.BATCH, "c", "b")
    await harness.accept(msgspec.structs.replace(task("own key"), origin=lookalike))
    (entry,) = (await harness.find("own key")).entries
    assert (entry.batch_id, entry.message_id) == ("", lookalike)


async def test_dead_letter_is_found_by_key_message_id_and_own_id(harness: Harness) -> None:
    harness.reject("m1")
    harness.reject("m2", body=body(idempotency_key="order-7"))
    harness.reject("m3", body={"tasks": [body(idempotency_key="item-1"), body()], "idempotency_key": "b-1"})
    for sought, message_id, kind, key in (
        ("m1", "m1", SubmissionKind.TASK, "m1"),
        ("order-7", "m2", SubmissionKind.TASK, "order-7"),
        ("m2", "m2", SubmissionKind.TASK, "order-7"),
        ("b-1", "m3", SubmissionKind.BATCH, "b-1"),
        ("item-1", "m3", SubmissionKind.BATCH, "b-1"),
        (keyed_id(SubmissionKind.TASK, "c", "item-1"), "m3", SubmissionKind.BATCH, "b-1"),
        (keyed_id(SubmissionKind.BATCH, "c", "b-1"), "m3", SubmissionKind.BATCH, "b-1"),
    ):
        (letter,) = (await harness.find(sought)).dead_letters
        assert (letter.message_id, letter.submission_id) == (message_id, keyed_id(kind, "c", key)), sought
        assert (letter.reason, letter.cust_id, letter.trace_id) == ("quota_exhausted", "c", TRACE.trace_id)
        assert letter.what_to_do.startswith("Redrive it next month")
        (same,) = (await harness.find(letter.id)).dead_letters
        assert same == letter


async def test_letter_leads_to_the_entry_of_its_submission(harness: Harness) -> None:
    """The id of the letter says nothing about it."""
    await harness.accept(task("m1"))
    harness.reject("m1", Reason.KEY_CONFLICT)
    (letter,) = (await harness.find("m1")).dead_letters
    findings = await harness.find(letter.id)
    assert [entry.id for entry in findings.entries] == [letter.submission_id]


async def test_admitted_submission_that_the_broker_dead_lettered_is_found_by_all_of_its_names(harness: Harness) -> None:
    decision = await harness.queue(batch("i", None, key="b"))
    headers = {"x-death": [{"queue": "ingest.http.0", "reason": "delivery_limit"}]}
    message = msgspec.structs.replace(to_message(decision.admitted), headers=headers)
    harness.letters.add(message)
    for sought in ("b", "i", decision.entry.id, *decision.entry.task_ids):
        findings = await harness.find(sought)
        (letter,) = findings.dead_letters
        assert (letter.submission_id, letter.reason) == (decision.entry.id, "delivery_limit"), sought
        assert decision.entry.id in [entry.id for entry in findings.entries], sought
        assert {entry.state for entry in findings.entries} == {
            "queued, and its message is in ingest.dead: it is accepted once that is redriven"
        }
    # What is trimmed says nothing about its items, but the ledger knows their batch.
    (dead,) = [read(delivery, SERVICE) for delivery in harness.letters.deliveries]
    harness.letters = MemoryDeadLetters()
    harness.letters.add(trimmed_letter(dead, DIED))
    for sought in ("b", "i", decision.entry.id, *decision.entry.task_ids):
        states = await harness.states(sought)
        assert states, sought
        assert all("from where it cannot be redriven" in state for state in states), sought


async def test_claim_whose_message_the_broker_dead_lettered_waits_for_a_redrive(harness: Harness) -> None:
    """A direct submission is claimed until it is accepted."""
    await harness.admit(msgspec.structs.replace(task("m1"), origin="m1"))
    harness.clock.now += LEASE + 1
    headers = {"x-death": [{"queue": "ingest.tasks", "reason": "delivery_limit"}]}
    message = Message(
        exchange=DEAD,
        routing_key="task.submitted.c",
        body=msgspec.json.encode(body()),
        message_id="m1",
        headers=headers,
    )
    harness.letters.add(message, "c")
    assert await harness.states("m1") == [
        "claimed, and its message is in ingest.dead: it is accepted once that is redriven"
    ]


@pytest.mark.parametrize("reason", [Reason.INVALID, Reason.KEY_CONFLICT])
async def test_rejected_submission_does_not_change_the_state_of_another_with_its_key(
    harness: Harness, reason: Reason
) -> None:
    """For example of a corrected one that was submitted later."""
    await harness.queue(task("m1"))
    harness.reject("m1", reason)
    assert await harness.states("m1") == ["queued: it waits for a worker"]


@pytest.mark.parametrize("id_", ["x", "tsk_", "tsk_UUUU", "victim", ""])
async def test_forged_admission_is_found_only_by_its_own_names(harness: Harness, id_: str) -> None:
    """Its producer may put another customer's id and key into its body."""
    victim = await harness.queue(task("k"))
    forged = msgspec.structs.replace(victim.admitted.submission, id=victim.entry.id if id_ == "victim" else id_)
    message = to_message(msgspec.structs.replace(victim.admitted, submission=forged))
    harness.reject("forged-1", Reason.FORGED_ADMISSION, body=message.body, type=message.type, cust_id="evil")
    (letter,) = (await harness.find("forged-1")).dead_letters
    assert (letter.submission_id, letter.from_shim) == ("", False)
    for sought in ("k", victim.entry.id):
        findings = await harness.find(sought)
        assert findings.dead_letters == []
        assert [entry.state for entry in findings.entries] == ["queued: it waits for a worker"]


async def test_trimmed_direct_letter_does_not_guess_its_submission(harness: Harness) -> None:
    """Its key was perhaps in the body."""
    harness.reject("m2", body=body(idempotency_key="order-7"))
    (dead,) = [read(delivery, SERVICE) for delivery in harness.letters.deliveries]
    harness.letters = MemoryDeadLetters()
    harness.letters.add(trimmed_letter(dead, DIED))
    (letter,) = (await harness.find("m2")).dead_letters
    assert letter.submission_id == ""


async def test_key_that_looks_like_an_id_is_found_if_no_submission_has_that_id(harness: Harness) -> None:
    unknown = keyed_id(SubmissionKind.TASK, "c", "unknown")
    (entry,) = await harness.accept(task(unknown))
    assert [found.id for found in (await harness.find(unknown)).entries] == [entry.id]


async def test_very_large_dead_letters_are_found_by_their_message_id(harness: Harness) -> None:
    """Looking for keys in them would take seconds, for each of them."""
    items = b'{"idempotency_key":"item"},' * 100_000
    harness.reject("m1", body=b'{"tasks":[' + items + b'{"idempotency_key":"item"}],"idempotency_key":"b"}')
    harness.reject("m2", body=b'{"tasks":[' + b"[]," * 600_000 + b"[]]}")
    began = time.monotonic()
    assert (await harness.find("b")).dead_letter_count == 1
    assert (await harness.find("m2")).dead_letter_count == 1
    assert (await harness.find("item")).dead_letter_count == 0
    assert time.monotonic() - began < 2


async def test_item_whose_batch_is_forgotten_has_no_message_id(harness: Harness) -> None:
    """The batch without a key is remembered for a day, the item for longer."""
    await harness.accept(batch("i", None))
    harness.clock.now += 2 * 86_400
    (entry,) = (await harness.find("i")).entries
    assert (entry.batch_id, entry.message_id) == ("", "")


async def test_request_and_trace_stay_when_a_worker_admits_the_message_again(harness: Harness) -> None:
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


async def test_customer_that_does_not_exist_is_said(harness: Harness) -> None:
    assert (await harness.find("k", "acne")).customer_exists is False
    assert (await harness.find("k", "c")).customer_exists is True
    assert (await harness.find("k")).customer_exists is None


async def test_letter_whose_body_cannot_be_read_is_found_by_its_message_id(harness: Harness) -> None:
    for text in (
        b"{",
        b"[" * 100_000,
        b"\xff",
        b'{"idempotency_key": 7, "tasks": [7, {"idempotency_key": []}]}',
        b"[]",
    ):
        harness.letters = MemoryDeadLetters()
        harness.reject("m1", Reason.MALFORMED, body=text)
        assert (await harness.find("m1")).dead_letter_count == 1, text[:20]
    harness.reject("", Reason.MISSING_MESSAGE_ID)
    assert (await harness.find("m1")).dead_letter_count == 1


async def test_only_the_latest_letters_are_kept(harness: Harness) -> None:
    """A producer may send any number with one message_id."""
    for number in range(MAX_DEAD_LETTERS + 5):
        harness.reject("m", body=body(data_url=f"https://a.example/{number}"))
    harness.reject("other")
    findings = await harness.find("m")
    assert (findings.dead_letter_count, len(findings.dead_letters)) == (MAX_DEAD_LETTERS + 5, MAX_DEAD_LETTERS)
    last = msgspec.json.decode(harness.letters.deliveries[-2].body)["submission"]["body"]
    assert json.loads(last)["data_url"].endswith(f"/{MAX_DEAD_LETTERS + 4}")
    assert findings.dead_letters[-1].id == harness.letters.deliveries[-2].message_id


async def test_customer_restricts_both_entries_and_letters(harness: Harness) -> None:
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


async def test_letter_of_a_customer_that_does_not_exist_is_found(harness: Harness) -> None:
    harness.reject("m1", Reason.UNKNOWN_CUSTOMER, cust_id="typo")
    (letter,) = (await harness.find("m1")).dead_letters
    assert letter.cust_id == "typo"


async def test_nothing_is_found_without_an_entry_or_a_letter(harness: Harness) -> None:
    assert await harness.find("nothing") == Findings()


async def test_letters_are_found_while_the_ledger_is_unavailable(harness: Harness) -> None:
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


async def test_entries_are_found_while_the_dead_letters_are_unavailable(harness: Harness) -> None:
    await harness.accept(task("k"))

    def no_broker(*, change: bool) -> AbstractAsyncContextManager[DeadLetterAccess]:
        assert not change
        raise BrokerUnavailable("no connection")

    findings = await find("k", harness.open_store, search_queue(no_broker))
    assert (len(findings.entries), findings.missing) == (1, ["the dead letters: no connection"])


async def test_record_that_cannot_be_read_now_is_named(harness: Harness) -> None:
    await harness.accept(task("k"))
    task_id = keyed_id(SubmissionKind.TASK, "c", "k")

    class PartlyUndecided(_Open):
        async def inspect(self, ids: Any) -> Any:
            stored: list[StoredEntry | Undecided | None] = list(await super().inspect(ids))
            return [UNDECIDED if id_ != task_id else found for id_, found in zip(ids, stored, strict=True)]

    async def open_store() -> Store:
        return PartlyUndecided(harness.store)

    findings = await find("k", open_store, search_queue(harness.letters.open))
    assert [entry.id for entry in findings.entries] == [task_id]
    assert findings.missing == ["1 record of the ledger, which cannot be read now"]
