"""The ledger: one entry per task or batch, stored under its id. Because ids are computed, the id *is* the key.

Only keyed items of a batch have entries of their own; the batch's entry covers the others.
"""

from enum import Enum, StrEnum, auto
from typing import Final, Literal

import msgspec

from ingest.domain.customers import DEFAULT_RETENTION, retention_of
from ingest.domain.identity import SubmissionKind, fingerprint, item_id
from ingest.domain.submissions import Submission, Task

UNFINISHED: Final = DEFAULT_RETENTION
"""Seconds for which an entry that is not accepted lives at least: longer than any backlog of a queue. Otherwise its key
could be used again while the first submission waits, and a charge that was never used could not be refunded."""


class Phase(StrEnum):
    """How far a submission has come. A phase never goes back."""

    CLAIMED = "claimed"
    """Not confirmed yet. If `lease` is above 0, it belongs to `owner` for that long after its last change."""
    QUEUED = "queued"
    """The broker has confirmed it; its client was answered 2xx, or will be."""
    ACCEPTED = "accepted"
    """All its events are confirmed."""


class Doubt(StrEnum):
    """Whether the submission of a claim may have been published by an earlier attempt."""

    NONE = ""
    OPEN = "open"
    """It may have been published; its charge counts, until the doubt has lasted too long."""
    EVENTS = "events"
    """Its events may have been published, by a worker that gets its message again until all are: its charge counts."""
    REFUNDED = "refunded"
    """It may have been published; its charge was taken back. If its message arrives, it must be charged again."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A ledger entry.

    `created_at` is in Unix milliseconds; event ids contain it, so it never changes. `lease` is how long the claim lasts
    after the last change of the entry, in milliseconds by the store's clock; 0 means that no attempt holds the entry.
    An attempt that publishes a queued submission again has a lease, too. `retention` is for how many seconds an
    accepted entry is remembered, since its last change. `generation` is the store's version of the entry (0: not stored
    yet, 1: just created). `charged` is the number of tasks that earlier attempts, none of them durable, have charged,
    the last of them in `charged_month`; `doubt` is what those attempts have left. `origin` tells a redelivery from
    another submission: it is the AMQP message_id of a direct submission, the batch's id for an item, otherwise empty.
    A batch has `task_count`, and `keyed_item_ids` maps the index of each keyed item to its id (stored under the name
    `own_ids`). `request_id` and `trace_id` are those of the request or message that made the claim, for people who look
    for it in logs and traces; they are empty if there were none.
    """

    id: str
    cust_id: str
    created_at: int
    fingerprint: bytes
    retention: int
    phase: Phase = Phase.CLAIMED
    owner: str = ""
    lease: int = 0
    charged: int = 0
    charged_month: str = ""
    doubt: Doubt = Doubt.NONE
    origin: str = ""
    request_id: str = ""
    trace_id: str = ""
    task_count: int = 0
    keyed_item_ids: dict[int, str] = msgspec.field(name="own_ids", default_factory=dict)
    generation: int = 0

    @property
    def is_durable(self) -> bool:
        """Whether the broker has confirmed the submission."""
        return self.phase is not Phase.CLAIMED

    @property
    def time_to_live(self) -> int:
        """Seconds after its last change until the entry expires."""
        return self.retention if self.phase is Phase.ACCEPTED else max(self.retention, UNFINISHED)

    @property
    def tasks(self) -> int:
        """The number of tasks that the entry covers: one task, or a batch's unkeyed items."""
        return self.task_count - len(self.keyed_item_ids) if self.task_count else 1

    @property
    def task_ids(self) -> list[str]:
        """The ids of a batch's tasks, in order."""
        keyed = self.keyed_item_ids
        return [keyed.get(index) or item_id(self.id, index) for index in range(self.task_count)]

    def covers_index(self, index: int) -> bool:
        """Return whether the batch has an unkeyed item at `index`."""
        return index < self.task_count and index not in self.keyed_item_ids


class StoredEntry(msgspec.Struct, frozen=True):
    """An entry, and for how many seconds it has not changed, by the store's clock."""

    entry: Entry
    unchanged_for: float


class Step(StrEnum):
    """A kind of change. It takes effect only if the stored generation is still `entry.generation`."""

    TAKE_OVER = "take_over"
    """Claim an entry that has not changed for `Change.idle`: write `owner`, `lease`, `origin`, `doubt`, `request_id`,
    `trace_id`, and what the body decides (`fingerprint`, `task_count`, `keyed_item_ids`)."""
    QUEUE = "queue"
    """Set phase queued and end the lease."""
    REPUBLISH = "republish"
    """Take the right to publish a queued submission again, whose entry has not changed for `Change.idle`: write `owner`
    and `lease`. The entry stays queued."""
    RELEASE = "release"
    """Give the claim back, if `owner` has not changed, so that a retry can continue at once: end the lease; set
    `charged`, `charged_month` and `doubt`."""
    REFUND = "refund"
    """Mark a claim in doubt before its charge is taken back: set `owner`, `charged`, `charged_month` and `doubt`."""
    FORGET = "forget"
    """Delete the entry, if `owner` has not changed: a new entry of the same id has the same generation again."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """A change of one entry. `entry` is the entry as it was last read, with the new values.

    It takes effect only if the entry has not changed for `idle` milliseconds. The store's clock decides, so that a
    wrong clock of one host cannot end the lease of another.
    """

    step: Step
    entry: Entry
    idle: int = 0


class Undecided(Enum):
    """The result for one entry or charge of a call that the store could not decide. It is false."""

    UNDECIDED = auto()

    def __bool__(self) -> Literal[False]:
        return False


UNDECIDED: Final = Undecided.UNDECIDED

UNLIMITED: Final = 2**62


class Charge(msgspec.Struct, frozen=True):
    """A charge of `count` tasks for a customer in a month (`YYYY-MM`, UTC), granted if used + count <= `limit`.

    Without a quota the limit is UNLIMITED. Such tasks are counted too, so that a quota that is set later in the month
    includes them.
    """

    cust_id: str
    month: str
    count: int
    limit: int


def takes_effect(change: Change, stored: Entry, idle: int) -> bool:
    """Return whether a change takes effect on the stored entry, which has not changed for `idle` milliseconds."""
    if stored.generation != change.entry.generation or idle < change.idle:
        return False
    return change.step not in (Step.RELEASE, Step.FORGET) or stored.owner == change.entry.owner


def after(change: Change, generation: int) -> Entry:
    """Return the entry as it is stored after the change; for FORGET, the deleted entry."""
    replace = msgspec.structs.replace
    match change.step:
        case Step.QUEUE:
            return replace(change.entry, phase=Phase.QUEUED, lease=0, generation=generation)
        case Step.RELEASE | Step.REFUND:
            return replace(change.entry, lease=0, generation=generation)
        case _:
            return replace(change.entry, generation=generation)


def accepted(entry: Entry) -> Entry:
    """Return the entry as it is stored once it is settled."""
    return msgspec.structs.replace(entry, phase=Phase.ACCEPTED, lease=0)


def submission_entry(
    submission: Submission,
    created_at: int,
    retention: int,
    *,
    owner: str = "",
    lease: int = 0,
    origin: str = "",
    request_id: str = "",
    trace_id: str = "",
) -> Entry:
    """Return the entry of the task or batch itself.

    Args:
        submission: the task or batch.
        created_at: Unix time in milliseconds.
        retention: the customer's, in seconds.
        owner: the attempt that claims it.
        lease: how long the claim lasts, in milliseconds.
        origin: see `Entry`.
        request_id: see `Entry`.
        trace_id: see `Entry`.
    """
    is_batch = submission.kind is SubmissionKind.BATCH
    return Entry(
        id=submission.id,
        cust_id=submission.cust_id,
        created_at=created_at,
        fingerprint=submission.fingerprint,
        retention=retention_of(retention, keyed=submission.key is not None),
        owner=owner,
        lease=lease,
        origin=origin,
        request_id=request_id,
        trace_id=trace_id,
        task_count=len(submission.tasks) if is_batch else 0,
        keyed_item_ids={i: task.task_id for i, task in enumerate(submission.tasks) if task.keyed} if is_batch else {},
    )


def item_entries(batch: Submission, created_at: int, retention: int, *, owner: str = "", lease: int = 0) -> list[Entry]:
    """Return the entries of a batch's keyed items, one per id, in order. Arguments as `submission_entry`."""
    first: dict[str, Task] = {}
    for task in batch.tasks:
        if task.keyed:
            first.setdefault(task.task_id, task)
    return [
        Entry(
            id=task.task_id,
            cust_id=batch.cust_id,
            created_at=created_at,
            fingerprint=fingerprint(task.body),
            retention=retention,
            owner=owner,
            lease=lease,
            origin=batch.id,
        )
        for task in first.values()
    ]
