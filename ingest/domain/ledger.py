"""The ledger: one entry a task or batch, under its id. Because ids are computed, the id *is* the key.

Items of a batch have entries of their own only where they have keys; the others live in their batch's entry.
"""

from enum import StrEnum

import msgspec

from ingest.domain.customers import retention_of
from ingest.domain.identity import SubmissionKind, fingerprint, item_id
from ingest.domain.submissions import Submission, Task


class Phase(StrEnum):
    """How far a submission has come; it never goes back."""

    CLAIMED = "claimed"
    """Somebody is submitting it; `owner` until `lease`."""
    QUEUED = "queued"
    """The broker has confirmed it; its client was, or may be, answered 2xx."""
    ACCEPTED = "accepted"
    """All its events are out."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A ledger entry.

    `created_at` and `lease` are Unix times in milliseconds; `lease` 0 means nobody holds it. `retention` is
    the time to live in seconds, written with every change. `generation` is the store's version of the entry
    (0: not stored yet). `charged` tasks were paid for by earlier attempts, of which none has landed.
    `origin` tells a repeat of the same attempt from another submission: the AMQP message_id of a direct one, the
    batch's id for an item of a batch, else empty.
    A batch has `task_count`, and in `keyed_item_ids` by index the ids of the items that have keys of their own.
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
    origin: str = ""
    task_count: int = 0
    keyed_item_ids: dict[int, str] = {}
    generation: int = 0

    @property
    def is_durable(self) -> bool:
        """Whether the submission is safe with the broker, or further."""
        return self.phase is not Phase.CLAIMED

    @property
    def tasks(self) -> int:
        """How many tasks the entry stands for: itself, or a batch's items without a key of their own."""
        return self.task_count - len(self.keyed_item_ids) if self.task_count else 1

    @property
    def task_ids(self) -> list[str]:
        """The ids of a batch's tasks, in order."""
        own = self.keyed_item_ids
        return [own.get(index) or item_id(self.id, index) for index in range(self.task_count)]

    def covers_index(self, index: int) -> bool:
        """Whether the batch has an item at `index` without a key of its own."""
        return index < self.task_count and index not in self.keyed_item_ids


class Step(StrEnum):
    """A change of one entry. It happens only if the stored generation is still `entry.generation`."""

    TAKE_OVER = "take_over"
    """Claim anew what a dead owner left: write `owner`, `lease`, `origin`, and what the body decides: `fingerprint`,
    `task_count`, `keyed_item_ids`."""
    QUEUE = "queue"
    """Phase queued, no lease."""
    RELEASE = "release"
    """Give the claim back so that a retry resumes at once: no lease, `charged` as given."""
    FORGET = "forget"
    """Delete the entry."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """A step for the entry as it was last seen; what is written is taken from `entry`."""

    step: Step
    entry: Entry


class Charge(msgspec.Struct, frozen=True):
    """`count` new tasks for a customer in a month (`YYYY-MM`, UTC), allowed while used + count <= `limit`."""

    cust_id: str
    month: str
    count: int
    limit: int


def after(change: Change, generation: int) -> Entry:
    """The entry as the step leaves it (FORGET: as it was)."""
    replace = msgspec.structs.replace
    match change.step:
        case Step.QUEUE:
            return replace(change.entry, phase=Phase.QUEUED, lease=0, generation=generation)
        case Step.RELEASE:
            return replace(change.entry, lease=0, generation=generation)
        case _:
            return replace(change.entry, generation=generation)


def accepted(entry: Entry) -> Entry:
    """The entry once all its events are out."""
    return msgspec.structs.replace(entry, phase=Phase.ACCEPTED, lease=0)


def submission_entry(
    submission: Submission, created_at: int, retention: int, *, owner: str = "", lease: int = 0, origin: str = ""
) -> Entry:
    """The entry of the task or batch itself; `retention` is the customer's, in seconds."""
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
        task_count=len(submission.tasks) if is_batch else 0,
        keyed_item_ids={i: task.task_id for i, task in enumerate(submission.tasks) if task.keyed} if is_batch else {},
    )


def item_entries(batch: Submission, created_at: int, retention: int, *, owner: str = "", lease: int = 0) -> list[Entry]:
    """The entries of a batch's tasks with keys of their own, one a distinct id, in order."""
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
