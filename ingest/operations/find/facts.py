"""What is shown to people of a submission that was found, by name. What is unknown or does not apply is left out."""

import time

from ingest.domain.display import age
from ingest.domain.events import rfc3339
from ingest.operations.find.findings import Findings, FoundDeadLetter, FoundEntry


def entry_facts(entry: FoundEntry) -> dict[str, str]:
    """Return the facts about an entry of the ledger. They are not redacted."""
    batch = entry.batch_id
    if entry.batch_index is not None:
        batch += f", index {entry.batch_index}"
    return _known(
        {
            "state": entry.state,
            "created": _ago(entry.created_at),
            "changed": _ago(entry.changed_at),
            "remembered": f"until {_time(entry.remembered_until)}",
            "tasks": f"{entry.task_count:,}" if entry.task_count else "",
            "batch": batch,
            "event": f"{entry.event_id}, {'confirmed' if entry.event_confirmed else 'not confirmed'}",
            "message_id": entry.message_id,
            "request id": entry.request_id,
            "trace id": entry.trace_id,
        }
    )


def dead_letter_facts(letter: FoundDeadLetter) -> dict[str, str]:
    """Return the facts about a dead letter. They are not redacted."""
    return _known(
        {
            "reason": f"{letter.reason}: {letter.error}",
            "customer": letter.cust_id,
            "died": "unknown" if letter.died_at is None else _ago(letter.died_at),
            "submission": letter.submission_id,
            "message_id": letter.message_id,
            "trace id": letter.trace_id,
            "what to do": letter.what_to_do,
        }
    )


def reason_not_found(findings: Findings) -> str:
    """Return why nothing was found, as the end of a sentence; empty if something is missing."""
    if findings.missing:
        return ""
    if findings.customer_exists is False:
        return ": this customer does not exist"
    return (
        ": it was never submitted or was refused, its retention has ended, it is a direct submission that still waits "
        "in its queue, or the message_id of one with an idempotency key, which is found by that key"
    )


def _known(facts: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if value}


def _time(seconds: float) -> str:
    return rfc3339(int(seconds * 1000))


def _ago(seconds: float) -> str:
    return f"{_time(seconds)} ({age(time.time() - seconds)} ago)"
