"""Ledger entries: which ones a submission has, what they cover, and how a change leaves them."""

from typing import Any

import msgspec
import pytest

from ingest.domain.customers import DAY
from ingest.domain.identity import fingerprint, item_id
from ingest.domain.ledger import Change, Doubt, Entry, Phase, Step, accepted, after, item_entries, submission_entry
from ingest.domain.submissions import batch_submission, task_submission
from tests.support.tasks import TASK

WEEK = 7 * DAY
CREATED_AT = 1_775_000_000_123
KEYED = TASK | {"idempotency_key": "x"}


def batch(*items: dict[str, Any], key: str | None = "b") -> Any:
    return batch_submission({"tasks": list(items)}, "c", frozenset(), key)


def test_new_entry_is_claimed_and_has_neither_lease_nor_charge_nor_doubt() -> None:
    submission = task_submission(TASK, "c", frozenset(), "k")
    assert submission_entry(submission, CREATED_AT, WEEK) == Entry(
        id=submission.id,
        cust_id="c",
        created_at=CREATED_AT,
        fingerprint=submission.fingerprint,
        retention=WEEK,
        phase=Phase.CLAIMED,
        owner="",
        lease=0,
        charged=0,
        charged_month="",
        doubt=Doubt.NONE,
        origin="",
        task_count=0,
        keyed_item_ids={},
        generation=0,
    )


def test_task_has_no_item_entries_and_its_entry_covers_one_task() -> None:
    """Also if the task has a key."""
    entry = submission_entry(task_submission(KEYED, "c", frozenset()), CREATED_AT, WEEK)
    assert (entry.tasks, entry.task_count, entry.task_ids) == (1, 0, [])
    assert not entry.covers_index(0)


@pytest.mark.parametrize(("key", "retention"), [("b", WEEK), (None, DAY)])
def test_entry_of_an_unkeyed_submission_is_kept_for_a_day_at_most(key: str | None, retention: int) -> None:
    assert submission_entry(batch(KEYED, key=key), CREATED_AT, WEEK).retention == retention
    assert submission_entry(task_submission(TASK, "c", frozenset(), key), CREATED_AT, WEEK).retention == retention


def test_entry_of_a_batch_covers_its_unkeyed_items() -> None:
    submission = batch(TASK, KEYED, TASK, KEYED)
    entry = submission_entry(submission, CREATED_AT, WEEK, owner="o", lease=30_000, origin="m")
    assert (entry.owner, entry.lease, entry.origin) == ("o", 30_000, "m")
    keyed_id = submission.tasks[1].task_id
    assert (entry.tasks, entry.task_count, entry.keyed_item_ids) == (2, 4, {1: keyed_id, 3: keyed_id})
    assert entry.task_ids == [item_id(entry.id, 0), keyed_id, item_id(entry.id, 2), keyed_id]
    assert [entry.covers_index(index) for index in range(5)] == [True, False, True, False, False]


def test_each_key_of_a_batch_has_one_entry_of_its_own() -> None:
    """It is the first item with the key that counts."""
    other = TASK | {"idempotency_key": "y"}
    submission = batch(other, TASK, KEYED, KEYED | {"consensus_threshold": 5})
    entries = item_entries(submission, CREATED_AT, WEEK, owner="o", lease=30_000)
    first, second = submission.tasks[0], submission.tasks[2]
    assert entries == [
        Entry(
            id=task.task_id,
            cust_id="c",
            created_at=CREATED_AT,
            fingerprint=fingerprint(task.body),
            retention=WEEK,
            owner="o",
            lease=30_000,
            origin=submission.id,
        )
        for task in (first, second)
    ]
    assert [entry.tasks for entry in entries] == [1, 1]
    assert {entry.lease for entry in item_entries(submission, CREATED_AT, WEEK)} == {0}


CLAIMED = Entry(
    id="tsk_1",
    cust_id="c",
    created_at=1,
    fingerprint=b"f",
    retention=60,
    owner="o",
    lease=30_000,
    charged=2,
    generation=4,
)


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (Step.TAKE_OVER, {}),
        (Step.QUEUE, {"phase": Phase.QUEUED, "lease": 0}),
        (Step.RELEASE, {"lease": 0}),
        (Step.FORGET, {}),
    ],
)
def test_change_sets_the_generation_and_what_its_step_says(step: Step, changes: dict[str, Any]) -> None:
    assert after(Change(step, CLAIMED), 5) == msgspec.structs.replace(CLAIMED, generation=5, **changes)


def test_settled_entry_is_accepted_and_belongs_to_no_attempt() -> None:
    assert accepted(CLAIMED) == msgspec.structs.replace(CLAIMED, phase=Phase.ACCEPTED, lease=0)


def test_entry_is_durable_once_the_broker_has_confirmed_it() -> None:
    entries = [msgspec.structs.replace(CLAIMED, phase=phase) for phase in Phase]
    assert [entry.is_durable for entry in entries] == [False, True, True]


def test_change_without_idle_time_takes_effect_at_once() -> None:
    assert Change(Step.TAKE_OVER, CLAIMED).idle == 0
