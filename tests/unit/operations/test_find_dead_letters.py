"""A submission is found in the dead letters, and its state takes them into account."""

import json
import time

import msgspec
import pytest

from ingest.domain.admitted import to_message
from ingest.domain.dead_letters import read
from ingest.domain.errors import Reason
from ingest.domain.identity import SubmissionKind, keyed_id
from ingest.domain.messages import Message
from ingest.domain.topology import DEAD
from ingest.domain.trimming import trimmed_letter
from ingest.operations.find import MAX_DEAD_LETTERS
from tests.support.admission_harness import batch, body, task
from tests.support.dead_letter_queue import SERVICE, MemoryDeadLetters
from tests.support.find_harness import DIED, LEASE, TRACE, FindHarness


async def test_dead_letter_is_found_by_key_message_id_and_own_id(harness: FindHarness) -> None:
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


async def test_letter_leads_to_the_entry_of_its_submission(harness: FindHarness) -> None:
    """The id of the letter says nothing about it."""
    await harness.accept(task("m1"))
    harness.reject("m1", Reason.KEY_CONFLICT)
    (letter,) = (await harness.find("m1")).dead_letters
    findings = await harness.find(letter.id)
    assert [entry.id for entry in findings.entries] == [letter.submission_id]


async def test_admitted_submission_that_the_broker_dead_lettered_is_found_by_all_of_its_names(
    harness: FindHarness,
) -> None:
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


async def test_claim_whose_message_the_broker_dead_lettered_waits_for_a_redrive(harness: FindHarness) -> None:
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
    harness: FindHarness, reason: Reason
) -> None:
    """For example of a corrected one that was submitted later."""
    await harness.queue(task("m1"))
    harness.reject("m1", reason)
    assert await harness.states("m1") == ["queued: it waits for a worker"]


@pytest.mark.parametrize("id_", ["x", "tsk_", "tsk_UUUU", "victim", ""])
async def test_forged_admission_is_found_only_by_its_own_names(harness: FindHarness, id_: str) -> None:
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


async def test_trimmed_direct_letter_does_not_guess_its_submission(harness: FindHarness) -> None:
    """Its key was perhaps in the body."""
    harness.reject("m2", body=body(idempotency_key="order-7"))
    (dead,) = [read(delivery, SERVICE) for delivery in harness.letters.deliveries]
    harness.letters = MemoryDeadLetters()
    harness.letters.add(trimmed_letter(dead, DIED))
    (letter,) = (await harness.find("m2")).dead_letters
    assert letter.submission_id == ""


async def test_very_large_dead_letters_are_found_by_their_message_id(harness: FindHarness) -> None:
    """Looking for keys in them would take seconds, for each of them."""
    items = b'{"idempotency_key":"item"},' * 100_000
    harness.reject("m1", body=b'{"tasks":[' + items + b'{"idempotency_key":"item"}],"idempotency_key":"b"}')
    harness.reject("m2", body=b'{"tasks":[' + b"[]," * 600_000 + b"[]]}")
    began = time.monotonic()
    assert (await harness.find("b")).dead_letter_count == 1
    assert (await harness.find("m2")).dead_letter_count == 1
    assert (await harness.find("item")).dead_letter_count == 0
    assert time.monotonic() - began < 2


async def test_letter_whose_body_cannot_be_read_is_found_by_its_message_id(harness: FindHarness) -> None:
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


async def test_only_the_latest_letters_are_kept(harness: FindHarness) -> None:
    """A producer may send any number with one message_id."""
    for number in range(MAX_DEAD_LETTERS + 5):
        harness.reject("m", body=body(data_url=f"https://a.example/{number}"))
    harness.reject("other")
    findings = await harness.find("m")
    assert (findings.dead_letter_count, len(findings.dead_letters)) == (MAX_DEAD_LETTERS + 5, MAX_DEAD_LETTERS)
    last = msgspec.json.decode(harness.letters.deliveries[-2].body)["submission"]["body"]
    assert json.loads(last)["data_url"].endswith(f"/{MAX_DEAD_LETTERS + 4}")
    assert findings.dead_letters[-1].id == harness.letters.deliveries[-2].message_id


async def test_letter_of_a_customer_that_does_not_exist_is_found(harness: FindHarness) -> None:
    harness.reject("m1", Reason.UNKNOWN_CUSTOMER, cust_id="typo")
    (letter,) = (await harness.find("m1")).dead_letters
    assert letter.cust_id == "typo"
