"""What was attempted, what was answered, and which messages were seen. The checker reads nothing else."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["accepted", "replay", "confirmed", "refused", "unavailable", "unknown"]
"""The outcome of one attempt.

In this order: 202; 200; the broker confirmed; 4xx; 409, 503, a returned message or no connection; no answer or a nack.
"""


@dataclass
class Attempt:
    """One request, or one publish with `message_id`. `shim` is the index of the shim that got the request, or -1."""

    channel: Literal["http", "amqp"]
    shim: int = -1
    message_id: str = ""
    start: float = field(default_factory=time.monotonic)
    end: float = 0.0
    outcome: Outcome = "unknown"
    status: int = 0
    id: str = ""

    def finish(self, outcome: Outcome, status: int = 0, submission_id: str = "") -> None:
        self.outcome, self.status, self.id, self.end = outcome, status, submission_id, time.monotonic()


@dataclass
class Submission:
    """One logical submission: a task (with one item) or a batch.

    `items` are unique names, each part of its task's data_url. A submission without `key` is sent only once. `own_keys`
    are the keys of keyed items, by index. `timestamp` is the AMQP property of its messages, in Unix seconds.
    """

    number: int
    cust_id: str
    kind: Literal["task", "batch"]
    key: str | None
    items: list[str]
    body: dict[str, Any]
    callback: bool
    own_keys: dict[int, str] = field(default_factory=dict)
    timestamp: int | None = None
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def known_accepted(self) -> bool:
        """Whether an answer or a confirm said that the submission is durable."""
        return any(attempt.outcome in ("accepted", "replay", "confirmed") for attempt in self.attempts)


@dataclass
class Seen:
    """One message that the observer received. `redelivered`: it did not acknowledge an earlier delivery."""

    queue: str
    routing_key: str
    event_id: str
    data: dict[str, Any]
    reason: str = ""
    redelivered: bool = False
    at: float = field(default_factory=time.monotonic)


@dataclass
class Injected:
    """One fault.

    `at` is its start in seconds of the run, `lasted` its duration in seconds. `proof` says how it is known that it
    happened, or why it is not (`shown` is False). `recovery` is the time in seconds from its end until submissions
    passed through again, None if they never did.
    """

    name: str
    at: float
    lasted: float
    proof: str
    recovery: float | None
    shown: bool


@dataclass
class History:
    """Everything about one run.

    `truncated` has the monotonic times before and after each truncation of the ledger. `splits` has the start and end
    of each time in which Aerospike nodes may not have known of each other, until they were one cluster again.
    """

    submissions: list[Submission] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    faults: list[Injected] = field(default_factory=list)
    truncated: list[float] = field(default_factory=list)
    splits: list[tuple[float, float]] = field(default_factory=list)
    kills: int = 0
    complaints: list[str] = field(default_factory=list)
    """Violations of invariants that were noticed during the run."""
    peak_memory: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    used: dict[str, int] = field(default_factory=dict)
    """Tasks charged by the end of the load, by customer."""
    quotas: dict[str, int] = field(default_factory=dict)
    replayed: int = 0
    bundled: int = 0
    """How many submissions were delivered in bundles, redeliveries included."""
    peak_in_flight: dict[str, int] = field(default_factory=dict)
    """The most deliveries that one worker held at once, by queue."""
