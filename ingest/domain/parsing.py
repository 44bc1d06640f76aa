"""From a body to a submission: everything that takes time in proportion to the body."""

from collections.abc import Mapping
from typing import Final

import msgspec

from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.identity import SubmissionKind
from ingest.domain.json_structure import structure, structure_at_most
from ingest.domain.submissions import MAX_TASK, Submission, batch_submission, decode_json, task_submission

MAX_STRUCTURE: Final[Mapping[SubmissionKind, int]] = {
    SubmissionKind.TASK: MAX_TASK,
    SubmissionKind.BATCH: 1_000_000,
}
"""The most commas, colons and opening brackets outside strings. They bound the memory that a body takes while it is
decoded: 8 MiB of empty arrays would need 250 MB. A task with more is above `MAX_TASK` as canonical JSON in any case."""

_ADVICE: Final = {
    SubmissionKind.TASK: "send a smaller label_spec",
    SubmissionKind.BATCH: "send fewer tasks in one batch",
}


class Unparsed(msgspec.Struct, frozen=True):
    """A body, and what is needed to make a submission of it.

    `webhooks` are the customer's registered webhook URLs; None accepts any. `fallback_key` is the idempotency key if
    the body has none.
    """

    kind: SubmissionKind
    body: bytes
    cust_id: str
    webhooks: frozenset[str] | None
    fallback_key: str | None


def parse(unparsed: Unparsed) -> Submission:
    """Decode and validate a body, and compute its ids and its canonical JSON. Raises InvalidSubmission."""
    kind, body = unparsed.kind, unparsed.body
    _check_structure(kind, body)
    make = task_submission if kind is SubmissionKind.TASK else batch_submission
    return make(decode_json(body), unparsed.cust_id, unparsed.webhooks, unparsed.fallback_key)


def _check_structure(kind: SubmissionKind, body: bytes) -> None:
    most = MAX_STRUCTURE[kind]
    if len(body) <= most or structure_at_most(body) <= most:
        return
    if (count := structure(body)) > most:
        raise InvalidSubmission(
            Reason.TOO_LARGE,
            f"the {kind} has {count:,} commas, colons and opening brackets outside strings, at most {most:,} are "
            f"allowed: {_ADVICE[kind]}",
        )
