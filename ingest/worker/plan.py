"""What one delivery needs: the messages to publish and the ledger entries to settle."""

import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import structlog

from ingest.admission import Decision
from ingest.domain import events
from ingest.domain.admitted import Admitted
from ingest.domain.dead_letters import dead_letter
from ingest.domain.errors import Reason
from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Doubt, Entry, Phase, item_entries, submission_entry
from ingest.domain.messages import CLOUDEVENTS, Delivery, Message
from ingest.domain.metrics import Outcome
from ingest.domain.submissions import Submission
from ingest.domain.trace import Trace, trace_of
from ingest.worker.rejections import Rejection, producer_of

_log = structlog.get_logger(__name__)


class OutboundPlan(msgspec.Struct, eq=False, gc=False):
    """The plan for one delivery.

    All `messages` are confirmed before `final_message` is published, so that a batch's event follows its tasks' events.
    Then `entries` are settled, then the delivery is acked. `decision` is set only if this attempt admitted the
    submission. `outcome`, `reason` and `mismatch` are what the metrics record for a direct submission. A duplicate of a
    submission that was not accepted yet has entries, too.
    """

    delivery: Delivery
    messages: list[Message]
    final_message: Message | None = None
    entries: Sequence[Entry] = ()
    decision: Decision | None = None
    outcome: Outcome = Outcome.ACCEPTED
    reason: str = ""
    mismatch: bool = False

    @property
    def accepted_tasks(self) -> int:
        """The number of tasks that this plan accepts, if it has entries."""
        return len(self.messages) - (1 if self.outcome is Outcome.DUPLICATE else 0)


def plan_rejection(rejection: Rejection) -> OutboundPlan:
    """Publish a dead letter, then a `submission.rejected` event.

    The event comes last: while `ingest.dead` is full, it would be published again with every attempt.
    """
    now = time.time_ns() // 1_000_000
    delivery, error = rejection.delivery, rejection.error
    letter = dead_letter(delivery, error, events.rfc3339(now))
    digest = letter.message_id.removeprefix("dead:")  # computing it takes long for a large body
    event = events.rejected(
        rejection.cust_id, delivery.message_id or "", now, error, digest, producer_of(rejection), rejection.key
    )
    return OutboundPlan(
        delivery,
        [letter],
        event,
        outcome=Outcome.REJECTED,
        reason=error.reason,
        mismatch=error.reason is Reason.KEY_CONFLICT,
    )


def plan_duplicate(delivery: Delivery, decision: Decision) -> OutboundPlan:
    """Publish a `submission.duplicate` event that names the original."""
    request = decision.request
    event = events.duplicate(decision.entry, request.submission, request.origin)
    return OutboundPlan(delivery, [event], outcome=Outcome.DUPLICATE, mismatch=decision.mismatch)


def plan_direct(delivery: Delivery, decision: Decision) -> OutboundPlan:
    """Publish the events of a direct submission that was admitted just now."""
    task_events, final_event = _events(
        decision.request.submission,
        decision.entry.created_at,
        decision.item_created_at,
        decision.replayed,
        decision.replayed,
    )
    return OutboundPlan(delivery, task_events, final_event, (*decision.owned, *decision.republished), decision)


def ids_to_read(submission: Submission) -> list[str]:
    """Return the ids of a submission's ledger entries: its own, then those of the keyed items."""
    if submission.kind is SubmissionKind.TASK:
        return [submission.id]
    return [submission.id, *dict.fromkeys(task.task_id for task in submission.tasks if task.keyed)]


def is_uncharged(admitted: Admitted, entries: Iterable[Entry | None]) -> bool:
    """Return whether a charge of a submission that the shim admitted was taken back and not made again.

    The shim was in doubt whether the broker had taken it, and the doubt lasted too long. It must be admitted again. If
    its own entry is durable, a later attempt was charged for all of it, or another body has superseded it.
    """
    submission_id = admitted.submission.id
    stored = [entry for entry in entries if entry is not None]
    if any(entry.id == submission_id and entry.is_durable for entry in stored):
        return False
    # An item may have been refunded to another submission that had taken it over.
    return any(
        not entry.is_durable and entry.doubt is Doubt.REFUNDED and entry.id not in admitted.replayed for entry in stored
    )


def released_entries(admitted: Admitted, entries: Sequence[Entry | None]) -> list[Entry]:
    """Return the entries of a submission that other attempts could take over, or refund, while it is processed.

    Arguments as `plan_admitted`.
    """
    submission = admitted.submission
    own = entries[0]
    if own is None or own.fingerprint != submission.fingerprint:
        return []
    released = [entry for entry in entries if entry is not None and not entry.is_durable and not entry.lease]
    fingerprints = {submission.id: submission.fingerprint}
    if released:
        fingerprints |= {item.id: item.fingerprint for item in _claimed_items(admitted)}
    # An item may have been taken over with another body.
    return [entry for entry in released if entry.fingerprint == fingerprints[entry.id]]


def plan_admitted(delivery: Delivery, admitted: Admitted, entries: Iterable[Entry | None]) -> OutboundPlan | None:
    """Publish the missing events of a submission that the shim admitted; None if the submission is accepted already.

    Args:
        delivery: the shim's message.
        admitted: its body.
        entries: the ledger entries of `ids_to_read`. An entry that the ledger has lost is created again, because the
            shim has answered 2xx.
    """
    submission = admitted.submission
    stored = {entry.id: entry for entry in entries if entry is not None}
    claimed = submission_entry(submission, admitted.created_at, admitted.retention)
    is_missing, own_entry = _resume(claimed, stored.get(submission.id))
    if not is_missing:
        return None
    created_at = (own_entry or claimed).created_at
    to_settle = [own_entry] if own_entry else []
    if submission.kind is SubmissionKind.TASK:
        event = events.task_accepted(submission.tasks[0], submission.cust_id, created_at, key=submission.key)
        return OutboundPlan(delivery, [event], None, to_settle)
    replayed = dict.fromkeys(admitted.replayed)
    done = set(replayed)
    item_created_at = {}
    for item in _claimed_items(admitted):
        if item.id in replayed:
            continue
        is_missing, entry = _resume(item, stored.get(item.id))
        if is_missing:
            item_created_at[item.id] = (entry or item).created_at
            to_settle += [entry] if entry else []
        else:
            done.add(item.id)
            if stored[item.id].origin != submission.id:
                replayed[item.id] = None
    task_events, final_event = _events(submission, created_at, item_created_at, done, tuple(replayed))
    return OutboundPlan(delivery, task_events, final_event, to_settle)


def _resume(claimed: Entry, stored: Entry | None) -> tuple[bool, Entry | None]:
    """Return whether the events of an entry are missing, and the entry to settle, if any.

    Args:
        claimed: the entry as the shim has claimed it.
        stored: the entry under the same id now.
    """
    if stored is None:
        return True, claimed
    if stored.fingerprint == claimed.fingerprint:
        return stored.phase is not Phase.ACCEPTED, stored
    # Another body has the key. If the claim was taken over, it has the same `created_at`: this body was never answered
    # 2xx, and its doubt has lasted too long. Otherwise the ledger has lost the entry, and both were answered 2xx.
    was_lost = stored.created_at != claimed.created_at
    if not was_lost:
        _log.warning("superseded_submission_dropped", cust_id=claimed.cust_id, id=claimed.id)
    return was_lost, None


def add_trace(plan: OutboundPlan) -> None:
    """Add the trace context of the delivery, if it has one, to every message of the plan."""
    trace = trace_of(plan.delivery.headers)
    if trace is not None:
        plan.messages = [_traced(message, trace) for message in plan.messages]
        if plan.final_message is not None:
            plan.final_message = _traced(plan.final_message, trace)


def _traced(message: Message, trace: Trace) -> Message:
    if message.content_type == CLOUDEVENTS:
        return events.traced(message, trace)
    return msgspec.structs.replace(message, headers=message.headers | trace.headers())


def _claimed_items(admitted: Admitted) -> list[Entry]:
    """Return the entries of a batch's keyed items as the shim has claimed them."""
    own = admitted.item_created_at
    items = item_entries(admitted.submission, admitted.created_at, admitted.retention)
    return [msgspec.structs.replace(item, created_at=own[item.id]) if item.id in own else item for item in items]


def _events(
    submission: Submission,
    created_at: int,
    item_created_at: Mapping[str, int],
    done: Iterable[str],
    replayed: Sequence[str],
) -> tuple[list[Message], Message | None]:
    """Return one `task.accepted` event per task that is not in `done`; for a batch also its `batch.accepted` event.

    `item_created_at` has keyed items of a batch, by id; all others were created with the batch.
    """
    cust_id = submission.cust_id
    if submission.kind is SubmissionKind.TASK:
        return [events.task_accepted(submission.tasks[0], cust_id, created_at, key=submission.key)], None
    task_events = []
    seen = set(done)
    for index, task in enumerate(submission.tasks):
        if task.task_id not in seen:
            seen.add(task.task_id)
            own = item_created_at.get(task.task_id, created_at)
            task_events.append(events.task_accepted(task, cust_id, own, (submission.id, index), key=task.key))
    return task_events, events.batch_accepted(submission, created_at, replayed)
