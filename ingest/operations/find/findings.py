"""What a search for a submission finds."""

from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

from ingest.domain.identity import SubmissionKind
from ingest.domain.ledger import Phase

_FROM_BROKER: Final = frozenset({"delivery_limit", "expired", "maxlen", "rejected"})
"""Reasons of dead letters that were not rejected by a worker, so that their submissions may be claimed."""


class FoundEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A task or batch in the ledger.

    `state` says in a sentence how far it has come, and `event_confirmed` whether its acceptance event certainly is out.
    Times are in Unix seconds; it is remembered at least until `remembered_until`. An item of a batch has `batch_id`,
    and `batch_index` if it has no key. `message_id`, `request_id` and `trace_id` are those of the request or message
    that submitted it, if they are known.
    """

    kind: SubmissionKind
    id: str
    cust_id: str
    phase: Phase
    state: str
    created_at: float
    changed_at: float
    remembered_until: float
    event_id: str
    event_confirmed: bool
    task_count: int = 0
    batch_id: str = ""
    batch_index: int | None = None
    message_id: str = ""
    request_id: str = ""
    trace_id: str = ""


class FoundDeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter of the submission, without its body. `died_at` is in Unix seconds, None if it is not known.

    `submission_id` is empty if it is not certain. `from_shim`: it is a message that the shim has published for an
    admitted submission. `what_to_do` is empty if the reason is not known.
    """

    id: str
    reason: str
    error: str
    cust_id: str
    submission_id: str
    message_id: str
    died_at: float | None
    from_shim: bool
    redrivable: bool
    what_to_do: str
    trace_id: str

    def is_message_of(self, entry: FoundEntry) -> bool:
        """Return whether an entry that is not accepted waits for this message, or one that it is a copy of."""
        if self.cust_id != entry.cust_id or self.submission_id not in (entry.id, entry.batch_id):
            return False
        return self.from_shim or (self.reason in _FROM_BROKER and self.message_id == entry.message_id)


class Matches(msgspec.Struct, frozen=True):
    """The dead letters that have one of the names: the latest ones, how many there are, and what could not be read."""

    dead_letters: list[FoundDeadLetter]
    count: int
    missing: str = ""


Search = Callable[[AbstractSet[str], str | None], Awaitable[Matches]]
"""Looks for the dead letters that have one of the names, of a customer or of all. Raises IngestError."""


class Findings(msgspec.Struct, kw_only=True):
    """What was found. `missing` names the parts that could not be asked or read.

    `dead_letters` are the latest of `dead_letter_count`. `customer_exists` is None if no customer was given, or it is
    not known.
    """

    entries: list[FoundEntry] = []
    dead_letters: list[FoundDeadLetter] = []
    dead_letter_count: int = 0
    customer_exists: bool | None = None
    missing: list[str] = []

    def add_missing(self, part: str) -> None:
        """Note a part that could not be asked; once, if it is asked several times."""
        if part not in self.missing:
            self.missing.append(part)
