"""Counts the dead letters of each customer in the last seven days, from one snapshot."""

from collections import Counter

from ingest.console.snapshot import ReasonGroup, Snapshot, ordered


def recent_counts(snapshot: Snapshot) -> Counter[str]:
    """Return the number of dead letters of the last seven days, by cust_id."""
    counts: Counter[str] = Counter()
    for group in snapshot.groups.values():
        counts[group.cust_id] += group.recent
    return counts


def groups_of(snapshot: Snapshot, cust_id: str) -> list[ReasonGroup]:
    """Return the dead letters of a customer by reason, of any age; those with most first."""
    return ordered(group for group in snapshot.groups.values() if group.cust_id == cust_id)


def is_complete(snapshot: Snapshot) -> bool:
    """Return whether every dead letter is counted with its customer (`snapshot.MAX_GROUPS`)."""
    return ("", "") not in snapshot.groups
