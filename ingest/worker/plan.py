"""One delivery on its way out: which messages it owes and which ledger entries it settles."""

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from ingest.admission import Decision
from ingest.domain import events
from ingest.domain.admitted import Admitted
from ingest.domain.dead_letters import dead_letter, digest
from ingest.domain.errors import Reason
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Entry, Phase, item_entries, submission_entry
from ingest.domain.messages import CLOUDEVENTS, Delivery, Message
from ingest.domain.submissions import Submission
from ingest.domain.trace import Trace, trace_of
from ingest.worker.rejections import Refusal

_rfc3339 = lru_cache(maxsize=1024)(events.rfc3339)


class OutboundPlan(msgspec.Struct, eq=False, gc=False):
    """`first` are to be confirmed before `last` may be seen; then `entries` are settled, then the delivery is acked.

    `decision` only where this very attempt has admitted it. `outcome`, `reason` and `mismatch` are for the metrics, of
    direct submissions.
    """

    delivery: Delivery
    first: list[Message]
    last: list[Message] = msgspec.field(default_factory=list)
    entries: Sequence[Entry] = ()
    decision: Decision | None = None
    outcome: str = "accepted"
    reason: str = ""
    mismatch: bool = False


def refused(refusal: Refusal) -> OutboundPlan:
    """A dead letter and a `submission.rejected` event."""
    now = events.rfc3339(time.time_ns() // 1_000_000)
    delivery, error = refusal.delivery, refusal.error
    event = events.rejected(refusal.cust_id, delivery.message_id or "", now, error, digest(delivery))
    return OutboundPlan(
        delivery,
        [dead_letter(delivery, error, now), event],
        outcome="rejected",
        reason=error.reason,
        mismatch=error.reason is Reason.KEY_CONFLICT,
    )


def duplicate(delivery: Delivery, decision: Decision) -> OutboundPlan:
    """A `submission.duplicate` event that names the original."""
    original = decision.entry
    time_ = _time(original.created_at)
    message_id = decision.request.origin
    event = events.duplicate(original.id, original.cust_id, message_id, time_, mismatch=decision.mismatch)
    return OutboundPlan(delivery, [event], outcome="duplicate", mismatch=decision.mismatch)


def direct(delivery: Delivery, decision: Decision) -> OutboundPlan:
    """A direct submission that has just been admitted."""
    submission = decision.request.submission
    replayed = decision.replayed
    first, last = _events(submission, decision.entry.created_at, frozenset(replayed), replayed)
    return OutboundPlan(delivery, first, last, decision.owned, decision)


def pass_trace_on(work: OutboundPlan) -> None:
    """Put the trace that the delivery came with, if any, into all that goes out for it."""
    trace = trace_of(work.delivery.headers)
    if trace is not None:
        work.first = [_traced(message, trace) for message in work.first]
        work.last = [_traced(message, trace) for message in work.last]


def _traced(message: Message, trace: Trace) -> Message:
    if message.content_type == CLOUDEVENTS:
        return events.traced(message, trace)
    return msgspec.structs.replace(message, headers=message.headers | trace.headers())


def ids_to_read(submission: Submission) -> list[str]:
    """The ledger entries that tell what of a submission is out: its own, then those of keyed items."""
    if submission.kind is SubmissionKind.TASK:
        return [submission.id]
    return [submission.id, *dict.fromkeys(task.task_id for task in submission.tasks if task.keyed)]


def resumed(delivery: Delivery, admitted: Admitted, found: Iterable[Entry | None]) -> OutboundPlan | None:
    """What is left of a submission that the shim admitted; None where all is out.

    `found` are the entries of `ids_to_read`. One that the ledger has lost is made anew: the shim has answered 2xx.
    """
    submission = admitted.submission
    known = {entry.id: entry for entry in found if entry is not None}
    head = submission_entry(submission, admitted.created_at, admitted.retention)
    stored = known.get(submission.id)
    if stored is not None:
        if stored.phase is Phase.ACCEPTED:
            return None
        # The ledger tells what goes out, also where a retry in between has changed the body: then it is written anew.
        same = stored.fingerprint == head.fingerprint
        head = stored if same else msgspec.structs.replace(head, created_at=stored.created_at)
    if submission.kind is SubmissionKind.TASK:
        return OutboundPlan(delivery, _events(submission, head.created_at, frozenset(), ())[0], [], (head,))
    out = {entry.id for entry in known.values() if entry.phase is Phase.ACCEPTED}
    by_others = {id_ for id_ in out if known[id_].origin != submission.id}
    replayed = tuple(dict.fromkeys([*admitted.replayed, *by_others]))
    done = out.union(replayed)
    first, last = _events(submission, head.created_at, done, replayed)
    items = item_entries(submission, admitted.created_at, admitted.retention)
    return OutboundPlan(
        delivery, first, last, (head, *[known.get(item.id, item) for item in items if item.id not in done])
    )


def _events(
    submission: Submission, created_at: int, done: Iterable[str], replayed: Sequence[str]
) -> tuple[list[Message], list[Message]]:
    """A `task.accepted` for each task whose event is not out or owed by another submission; then `batch.accepted`."""
    time_ = _time(created_at)
    cust_id = submission.cust_id
    if submission.kind is SubmissionKind.TASK:
        return [events.task_accepted(submission.tasks[0], cust_id, time_)], []
    first = []
    seen = set(done)
    for index, task in enumerate(submission.tasks):
        if task.task_id not in seen:
            seen.add(task.task_id)
            first.append(events.task_accepted(task, cust_id, time_, (submission.id, index)))
    return first, [events.batch_accepted(submission, time_, replayed)]


def _time(milliseconds: int) -> str:
    return _rfc3339(milliseconds // 1000 * 1000)  # whole seconds, so that the cache hits
