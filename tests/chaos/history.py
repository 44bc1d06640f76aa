"""What was attempted, what was answered, what came out. The checker reads nothing else."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["accepted", "replay", "confirmed", "refused", "unavailable", "unknown"]
"""Of one attempt: 202; 200; the broker's confirm; 4xx; 409, 503, a return or a nack; no answer."""


@dataclass
class Attempt:
    """One request, or one publish under `message_id`. `shim` is the index of the one asked, or -1."""

    channel: Literal["http", "amqp"]
    shim: int = -1
    message_id: str = ""
    start: float = field(default_factory=time.monotonic)
    end: float = 0.0
    outcome: Outcome = "unknown"
    status: int = 0
    id: str = ""

    def finish(self, outcome: Outcome, status: int = 0, id_: str = "") -> None:
        self.outcome, self.status, self.id, self.end = outcome, status, id_, time.monotonic()


@dataclass
class Submission:
    """One logical submission: a single (`items` of one) or a batch. `items` are markers, each in its task's data_url.

    `key` None: without identity, so it is sent once only. `own_keys`: items with keys of their own, by index.
    """

    number: int
    cust_id: str
    kind: Literal["task", "batch"]
    key: str | None
    items: list[str]
    body: dict[str, Any]
    callback: bool
    own_keys: dict[int, str] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def known_accepted(self) -> bool:
        """Whether somebody was promised that it is safe."""
        return any(attempt.outcome in ("accepted", "replay", "confirmed") for attempt in self.attempts)

    @property
    def unclear(self) -> bool:
        return any(attempt.outcome == "unknown" for attempt in self.attempts)


@dataclass
class Seen:
    """One message that came out, in order of arrival. `again`: the observer itself had lost it before its ack."""

    queue: str
    routing_key: str
    event_id: str
    data: dict[str, Any]
    reason: str = ""
    again: bool = False
    at: float = field(default_factory=time.monotonic)


@dataclass
class Injected:
    """One fault: the proof that it happened, and how long after its end all was well again. Seconds of the run."""

    name: str
    at: float
    lasted: float
    proof: str
    recovery: float | None
    shown: bool


@dataclass
class History:
    """Everything of one run. `truncated`: when the ledger was emptied, monotonic seconds."""

    submissions: list[Submission] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    faults: list[Injected] = field(default_factory=list)
    truncated: list[float] = field(default_factory=list)
    kills: int = 0
    complaints: list[str] = field(default_factory=list)
    """Invariants that were found broken while the run went on."""
    peak_memory: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    used: dict[str, int] = field(default_factory=dict)
    """Tasks charged, by customer, at the end of the load."""
    quotas: dict[str, int] = field(default_factory=dict)
    replayed: int = 0
    most: dict[str, int] = field(default_factory=dict)
    """Most deliveries in flight in one worker, by queue."""
