"""How many dead letters of the last seven days a reading has counted."""

from collections.abc import Iterator

import pytest

from ingest.console.recent_letters import groups_of, is_complete, recent_counts
from ingest.console.snapshot import WEEK, Snapshot
from ingest.domain.dead_letters import dead_letter, read
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.events import rfc3339
from tests.support.dead_letter_queue import SERVICE, MemoryDeadLetters
from tests.support.deliveries import direct_delivery

NOW = 1_775_736_000.0


def add(snapshot: Snapshot, age: float | None, cust_id: str = "acme", reason: Reason = Reason.INVALID) -> None:
    """Add a dead letter that died some seconds before the reading; None: when is not known."""
    queue = MemoryDeadLetters()
    died = "" if age is None else rfc3339(int((NOW - age) * 1000))
    queue.add(dead_letter(direct_delivery("m", cust_id=cust_id), InvalidSubmission(reason, "wrong"), died))
    snapshot.add(read(queue.deliveries[0], SERVICE), SERVICE)


@pytest.fixture
def snapshot() -> Iterator[Snapshot]:
    snapshot = Snapshot(NOW, max_rows=3, max_bytes=10_000, max_groups=3)
    yield snapshot
    snapshot.close()


def test_only_the_last_seven_days_before_the_reading_count(snapshot: Snapshot) -> None:
    for age in (WEEK + 1, WEEK, 0):
        add(snapshot, age)
    (group,) = groups_of(snapshot, "acme")
    assert (group.recent, group.undated, group.count) == (2, 0, 3)
    assert recent_counts(snapshot) == {"acme": 2}
    assert recent_counts(snapshot)["other"] == 0


def test_dead_letter_of_unknown_age_is_counted_apart(snapshot: Snapshot) -> None:
    add(snapshot, None)
    add(snapshot, 60)
    (group,) = groups_of(snapshot, "acme")
    assert (group.recent, group.undated, group.count) == (1, 1, 2)


def test_each_reason_of_a_customer_is_a_group(snapshot: Snapshot) -> None:
    add(snapshot, 1)
    for _ in range(2):
        add(snapshot, 1, reason=Reason.QUOTA_EXHAUSTED)
    add(snapshot, 1, "globex")
    assert [(group.reason, group.recent) for group in groups_of(snapshot, "acme")] == [
        ("quota_exhausted", 2),
        ("invalid", 1),
    ]
    assert recent_counts(snapshot) == {"acme": 3, "globex": 1}


def test_dead_letters_that_are_no_longer_listed_count(snapshot: Snapshot) -> None:
    """Only the latest are listed."""
    for _ in range(5):
        add(snapshot, 1)
    assert recent_counts(snapshot) == {"acme": 5}
    assert snapshot.letters(limit=9)[1] == 3


def test_reading_says_if_customers_are_missing(snapshot: Snapshot) -> None:
    for number in range(3):
        add(snapshot, 1, f"c{number}")
    assert is_complete(snapshot)
    add(snapshot, 1, "c3")
    assert not is_complete(snapshot)
    assert groups_of(snapshot, "c3") == []
