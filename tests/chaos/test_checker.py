"""The checker finds what is wrong: one history that is right, and each way in which it can go wrong."""

import re
from collections.abc import Callable

import pytest

from ingest.domain.identity import SubmissionKind, item_id, keyed_id
from tests.chaos.checker import check
from tests.chaos.history import Attempt, History, Injected, Outcome, Seen, Submission

BATCH = keyed_id(SubmissionKind.BATCH, "acme", "key-1")


def attempt(outcome: Outcome, id_: str = "") -> Attempt:
    made = Attempt("http", shim=0)
    made.finish(outcome, 202, id_)
    return made


def published(message_id: str) -> Attempt:
    made = Attempt("amqp", message_id=message_id)
    made.finish("confirmed")
    return made


def accepted(item: str, task_id: str, queue: str = "consensus.tasks") -> Seen:
    data = {"data_url": f"https://cdn.example.com/{item}", "task_id": task_id, "cust_id": "acme"}
    return Seen(queue, "task.accepted.sentiment.webhook", f"{task_id}:accepted", data)


def good() -> History:
    """A single over HTTP, a batch of two straight to the broker with a duplicate; both with callbacks."""
    history = History(used={"acme": 3, "beta": 0, "tiny": 0}, quotas={"tiny": 5})
    single = Submission(0, "acme", "task", "key-0", ["0-0"], {}, callback=True)
    single.attempts = [attempt("unknown"), attempt("accepted", keyed_id(SubmissionKind.TASK, "acme", "key-0"))]
    batch = Submission(1, "acme", "batch", "key-1", ["1-0", "1-1"], {}, callback=True)
    batch.attempts = [published("m1"), published("m2")]
    history.submissions = [single, batch]
    for queue in ("consensus.tasks", "webhook.dispatch"):
        history.seen.append(accepted("0-0", keyed_id(SubmissionKind.TASK, "acme", "key-0"), queue))
        history.seen += [accepted(f"1-{i}", item_id(BATCH, i), queue) for i in (0, 1)]
    done = {"batch_id": BATCH, "task_ids": [item_id(BATCH, i) for i in (0, 1)], "replayed_task_ids": []}
    history.seen.append(Seen("webhook.dispatch", "batch.accepted.webhook", f"{BATCH}:accepted", done))
    told = {"cust_id": "acme", "message_id": "m2"}
    history.seen.append(Seen("chaos.spy", "submission.duplicate", "d", told))
    history.faults = [Injected("a", 0, 1, "it was", 0.5, shown=True)]
    return history


def test_what_is_right_is_right() -> None:
    """Nothing broken, and everything counted."""
    result = check(good())
    assert result.broken == []
    assert (result.attempted, result.accepted, result.duplicated, result.recovered) == (3, 3, 0, 0)


def drop(position: int) -> Callable[[History], None]:
    def change(history: History) -> None:
        del history.seen[position]

    return change


def add(seen: Seen) -> Callable[[History], None]:
    return lambda history: history.seen.append(seen)


def early_batch(history: History) -> None:
    history.seen.insert(4, history.seen.pop(6))


def one_item_short(history: History) -> None:
    history.seen[6].data["task_ids"] = [item_id(BATCH, 0)] * 2


def undercharged(history: History) -> None:
    history.used["acme"] = 2


def told_otherwise(history: History) -> None:
    history.submissions[0].attempts.append(attempt("replay", keyed_id(SubmissionKind.TASK, "acme", "other")))


def unproven(history: History) -> None:
    history.faults[0].shown = False


def never_recovered(history: History) -> None:
    history.faults[0].recovery = None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop(0), "lost: 1"),
        (drop(3), r"lost: 1.*\(webhook\)"),
        (drop(6), "no batch.accepted"),
        (drop(7), "2 of 2 messages were taken as the original"),
        (add(accepted("9-9", "tsk_x")), "unexpected: 1"),
        (add(accepted("0-0", "tsk_other")), "has 2 ids"),
        (
            add(Seen("ingest.dead", "rejected.invalid", "", {"cust_id": "acme"}, "invalid")),
            "valid submission in ingest.dead",
        ),
        (early_batch, "came before its tasks"),
        (one_item_short, "has 1 tasks, 2 declared"),
        (undercharged, "charged 2 tasks, 3 were accepted"),
        (told_otherwise, "was told"),
        (unproven, "was not shown"),
        (never_recovered, "no recovery"),
        (lambda history: history.complaints.append("x died"), "x died"),
        (lambda history: history.peak_memory.update(worker=900), "used 900 MiB"),
    ],
)
def test_what_is_wrong_is_found(change: Callable[[History], None], sentence: str) -> None:
    """Each change breaks one invariant, and is told."""
    history = good()
    change(history)
    broken = check(history).broken
    assert any(re.search(sentence, each) for each in broken), broken
