"""What admission is asked, and what it answers."""

from enum import StrEnum

import msgspec

from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.ledger import Charge, Entry, Phase
from ingest.domain.submissions import Submission
from ingest.domain.trace import Trace


class Request(msgspec.Struct, frozen=True, gc=False):
    """A submission to admit.

    `origin` is the AMQP message_id of a direct submission, otherwise empty. `trace` is the client's trace context, and
    `request_id` that of an HTTP request.
    `created_at` is when it was submitted, in Unix milliseconds, if its message says so. Only a new entry takes it.
    """

    submission: Submission
    customer: Customer
    origin: str = ""
    trace: Trace | None = None
    created_at: int | None = None
    request_id: str = ""


class Verdict(StrEnum):
    """The result of an admission, or of the publish that follows it."""

    ADMITTED = "admitted"
    """Claimed and charged. The caller publishes it, then calls `queued` or `accepted`, or `release` if that fails."""
    REPLAY = "replay"
    """The key was used before; `Decision.entry` is the original."""
    CONTENDED = "contended"
    """Another attempt holds a live claim on the key, or on the key of an item."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    UNDECIDED = "undecided"
    """The store could not decide one of its claims, or its charge; its other claims are given back."""
    UNCONFIRMED = "unconfirmed"
    """Admitted, but the broker did not confirm the publish; the claim was released. Only the shim uses it."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The verdict on one request.

    `entry` is the submission's ledger entry: its own, the original's (REPLAY), or the other attempt's (CONTENDED). That
    of an UNDECIDED request may not be stored.
    `owned` are the entries that this admission claimed, `entry` first. `charge` is what was charged now, in tasks.
    `replayed` are the ids of the batch's tasks that were accepted before. `republished` are queued entries whose
    messages are probably lost: a REPLAY that has one must be published again, and the items of an ADMITTED batch are
    published with it. `held_until` is the monotonic time until which the claims are certainly held. `item_created_at`
    has the keyed items to publish whose entries are older or newer than the batch's, by id: a claim that is taken over
    keeps its time.
    """

    verdict: Verdict
    request: Request
    entry: Entry
    owned: tuple[Entry, ...] = ()
    charge: Charge | None = None
    replayed: tuple[str, ...] = ()
    republished: tuple[Entry, ...] = ()
    held_until: float = 0.0
    item_created_at: dict[str, int] = {}

    @property
    def must_publish(self) -> bool:
        """Whether the caller publishes the submission: it is new, or a replay whose message is probably lost."""
        return self.verdict is Verdict.ADMITTED or (self.verdict is Verdict.REPLAY and bool(self.republished))

    @property
    def is_being_published(self) -> bool:
        """Whether this is a replay that another attempt publishes again now, or did not finish publishing."""
        is_queued = self.verdict is Verdict.REPLAY and self.entry.phase is Phase.QUEUED
        return is_queued and bool(self.entry.lease) and not self.republished

    @property
    def admitted(self) -> Admitted:
        """What the shim's message to the workers says about the submission."""
        return Admitted(
            self.request.submission,
            self.entry.created_at,
            self.request.customer.retention,
            self.replayed,
            self.item_created_at,
        )

    @property
    def mismatch(self) -> bool:
        """Whether this is a replay whose body differs from the original."""
        return self.verdict is Verdict.REPLAY and self.entry.fingerprint != self.request.submission.fingerprint
