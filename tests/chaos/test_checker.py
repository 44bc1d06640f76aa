"""The checker passes a correct history and reports each kind of defect in it."""

import re
import time
from collections.abc import Callable

import pytest

from ingest.domain.events import acceptance_id
from ingest.domain.identity import SubmissionKind, item_id, keyed_id
from tests.chaos.checker import check
from tests.chaos.history import Attempt, History, Injected, Outcome, Seen, Submission

SINGLE = keyed_id(SubmissionKind.TASK, "acme", "key-0")
BATCH = keyed_id(SubmissionKind.BATCH, "acme", "key-1")


def http_attempt(outcome: Outcome, submission_id: str = "") -> Attempt:
    attempt = Attempt("http", shim=0)
    attempt.finish(outcome, 202, submission_id)
    return attempt


def confirmed_publish(message_id: str) -> Attempt:
    attempt = Attempt("amqp", message_id=message_id)
    attempt.finish("confirmed")
    return attempt


def accepted_event(item: str, task_id: str, queue: str = "consensus.tasks", created_at: int = 1) -> Seen:
    data = {"data_url": f"https://cdn.example.com/{item}", "task_id": task_id, "cust_id": "acme"}
    return Seen(queue, "task.accepted.sentiment.webhook", acceptance_id(task_id, created_at), data)


def correct_history() -> History:
    """Return a history of a task over HTTP, and a batch of two over AMQP with a duplicate, both with callbacks.

    `seen` has three events of consensus.tasks, three of webhook.dispatch, `batch.accepted` and the duplicate.
    """
    history = History(used={"acme": 3, "beta": 0, "tiny": 0}, quotas={"tiny": 5})
    single = Submission(0, "acme", "task", "key-0", ["0-0"], {}, callback=True)
    single.attempts = [http_attempt("unknown"), http_attempt("accepted", SINGLE)]
    batch = Submission(1, "acme", "batch", "key-1", ["1-0", "1-1"], {}, callback=True)
    batch.attempts = [confirmed_publish("m1"), confirmed_publish("m2")]
    history.submissions = [single, batch]
    for queue in ("consensus.tasks", "webhook.dispatch"):
        history.seen.append(accepted_event("0-0", SINGLE, queue))
        history.seen += [accepted_event(f"1-{index}", item_id(BATCH, index), queue) for index in (0, 1)]
    batch_data = {"batch_id": BATCH, "task_ids": [item_id(BATCH, index) for index in (0, 1)], "replayed_task_ids": []}
    history.seen.append(Seen("webhook.dispatch", "batch.accepted.webhook", acceptance_id(BATCH, 1), batch_data))
    duplicate_data = {"cust_id": "acme", "message_id": "m2"}
    history.seen.append(Seen("chaos.spy", "submission.duplicate.acme", "d", duplicate_data))
    history.faults = [Injected("a", 0, 1, "proof", 0.5, shown=True)]
    return history


def test_correct_history_is_counted_and_breaks_no_invariant() -> None:
    result = check(correct_history())
    assert result.broken == []
    assert (result.attempted, result.accepted, result.duplicated, result.recovered) == (3, 3, 0, 0)


def test_task_may_be_accepted_once_more_after_the_ledger_was_emptied() -> None:
    history = correct_history()
    history.truncated = [1.0, 2.0]
    history.seen.append(accepted_event("0-0", SINGLE, created_at=2))
    assert check(history).broken == []


def in_a_split(history: History) -> History:
    """Let a split begin before the first attempt and end after the last event."""
    history.splits = [(0.0, time.monotonic() + 1)]
    return history


def before_a_split(history: History) -> History:
    """Let a split begin after everything that happened."""
    history.splits = [(time.monotonic() + 1, time.monotonic() + 2)]
    return history


def test_task_may_be_accepted_once_more_in_a_split_of_the_store() -> None:
    history = in_a_split(correct_history())
    history.seen.append(accepted_event("0-0", SINGLE, created_at=2))
    assert check(history).broken == []


def test_only_what_was_accepted_in_a_split_may_be_uncharged() -> None:
    history = correct_history()
    history.used["acme"] = 2
    assert check(in_a_split(history)).broken == []
    assert check(before_a_split(history)).broken == ["acme was charged 2 tasks, 3 were accepted, 0 of them in a split"]


def test_task_that_was_accepted_before_a_split_may_not_be_accepted_again() -> None:
    history = correct_history()
    history.seen.append(accepted_event("0-0", SINGLE, created_at=2))
    assert "was accepted as" in check(before_a_split(history)).broken[0]


def drop_event(position: int) -> Callable[[History], None]:
    def change(history: History) -> None:
        del history.seen[position]

    return change


def add_event(seen: Seen) -> Callable[[History], None]:
    return lambda history: history.seen.append(seen)


def move_batch_accepted_before_its_tasks(history: History) -> None:
    history.seen.insert(4, history.seen.pop(6))


def repeat_a_task_in_batch_accepted(history: History) -> None:
    history.seen[6].data["task_ids"] = [item_id(BATCH, 0)] * 2


def charge(tasks: int) -> Callable[[History], None]:
    def change(history: History) -> None:
        history.used["acme"] = tasks

    return change


def accept_more_than_the_quota(history: History) -> None:
    history.quotas["tiny"] = -len(history.faults)
    history.submissions.append(
        Submission(2, "tiny", "task", None, ["2-0"], {}, False, attempts=[http_attempt("accepted")])
    )
    history.seen.append(accepted_event("2-0", "tsk_tiny"))


def lose_a_report(history: History) -> None:
    history.seen.append(Seen("chaos.spy", "submission.rejected.beta", "r", {"cust_id": "beta", "message_id": "m9"}))


def answer_another_id(history: History) -> None:
    other = keyed_id(SubmissionKind.TASK, "acme", "other")
    history.submissions[0].attempts.append(http_attempt("replay", other))


def answer_only_a_wrong_id(history: History) -> None:
    history.submissions[0].attempts = [http_attempt("accepted", "tsk_wrong")]


def accept_again_after_the_ledger_was_emptied(history: History) -> None:
    """The messages of the batch have a timestamp, so its tasks keep their event ids."""
    history.truncated = [1.0, 2.0]
    history.submissions[1].timestamp = 5
    history.seen.append(accepted_event("1-0", item_id(BATCH, 0), created_at=2))


def leave_fault_unproven(history: History) -> None:
    history.faults[0].shown = False


def never_recover(history: History) -> None:
    history.faults[0].recovery = None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop_event(0), "lost: 1"),
        (drop_event(3), r"lost: 1.*\(webhook\)"),
        (drop_event(6), "no batch.accepted"),
        (drop_event(7), "2 of 2 messages were taken as the original"),
        (add_event(accepted_event("9-9", "tsk_x")), "unexpected: 1"),
        (add_event(accepted_event("0-0", "tsk_other")), "has 2 ids"),
        (add_event(accepted_event("0-0", SINGLE, created_at=2)), "expected at most 1"),
        (accept_again_after_the_ledger_was_emptied, "expected at most 1"),
        (
            add_event(Seen("ingest.dead", "rejected.invalid", "", {"cust_id": "acme"}, "invalid")),
            "valid submission in ingest.dead",
        ),
        (move_batch_accepted_before_its_tasks, "came before its tasks"),
        (repeat_a_task_in_batch_accepted, "has 1 tasks, 2 submitted"),
        (charge(2), "charged 2 tasks, 3 were accepted"),
        (charge(10), "charged 10 tasks for 3"),
        (accept_more_than_the_quota, "tiny got 1 tasks accepted with a quota of -1"),
        (lose_a_report, "feedback.beta has no report about m9"),
        (answer_another_id, "got several ids"),
        (answer_only_a_wrong_id, "got a wrong id"),
        (leave_fault_unproven, "was not shown"),
        (never_recover, "no recovery"),
        (lambda history: history.complaints.append("x died"), "x died"),
        (lambda history: history.peak_memory.update(worker=900), "used 900 MiB"),
    ],
)
def test_checker_reports_defect(change: Callable[[History], None], sentence: str) -> None:
    history = correct_history()
    change(history)
    broken = check(history).broken
    assert any(re.search(sentence, violation) for violation in broken), broken
