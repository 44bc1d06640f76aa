"""A schedule: what clients do and what goes wrong, at which time."""

import math
from typing import Final

import msgspec

SHIMS: Final = ("shim0", "shim1")
WORKERS: Final = ("worker0", "worker1", "worker2")


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A client submits a task (`items` 0) or a batch, over HTTP or directly, and retries up to `attempts` times.

    `key` and `item_key` (of the batch's first item) are idempotency keys; `body` chooses one of a few bodies, of which
    2 has a callback. A direct producer sends `copies` at once. If `again` is not 0, the client submits the same once
    more, so many seconds later.
    """

    at: float
    customer: str
    key: str | None
    body: int
    items: int = 0
    item_key: str | None = None
    direct: bool = False
    attempts: int = 10
    copies: int = 1
    again: float = 0.0

    def shares_a_key(self, other: "Submit") -> bool:
        """Return whether two submissions have an idempotency key in common."""
        keys = {self.key, self.item_key} & {other.key, other.item_key}
        return self.customer == other.customer and bool(keys - {None})


class Crash(msgspec.Struct, frozen=True, tag=True):
    at: float
    process: str
    seconds: float


class Stop(msgspec.Struct, frozen=True, tag=True):
    """A process gets SIGTERM; it starts again after `seconds`."""

    at: float
    process: str
    seconds: float


class Pause(msgspec.Struct, frozen=True, tag=True):
    at: float
    process: str
    seconds: float


class Outage(msgspec.Struct, frozen=True, tag=True):
    """A server (`store` or `broker`) answers no call; with `process`, only none of that process."""

    at: float
    server: str
    seconds: float
    process: str | None = None


class Doubt(msgspec.Struct, frozen=True, tag=True):
    """Calls to a server may be lost, take effect without an answer, or take effect late.

    Each record of a call to the store, and some messages of a call to the broker, have a fate of their own.
    """

    at: float
    server: str
    seconds: float
    process: str | None = None


class LostConnection(msgspec.Struct, frozen=True, tag=True):
    """A worker's consumers lose their connection."""

    at: float
    process: str


class FullQueue(msgspec.Struct, frozen=True, tag=True):
    at: float
    queue: str
    seconds: float


class Backlog(msgspec.Struct, frozen=True, tag=True):
    """Messages of an ingest queue wait for so long, as they do behind many others."""

    at: float
    queue: str
    seconds: float


class Expired(msgspec.Struct, frozen=True, tag=True):
    """What waits in an ingest queue expires, because an operator has set a policy. At the end, all is redriven."""

    at: float
    queue: str


class MissingBindings(msgspec.Struct, frozen=True, tag=True):
    """No queue of the service is bound to an exchange. (If only one is missing, RabbitMQ confirms nevertheless.)"""

    at: float
    exchange: str
    seconds: float


class LostRecord(msgspec.Struct, frozen=True, tag=True):
    """The store loses the entry of a key."""

    at: float
    customer: str
    key: str


class MonthEnd(msgspec.Struct, frozen=True, tag=True):
    """A month ends (UTC)."""

    at: float


class SetQuota(msgspec.Struct, frozen=True, tag=True):
    """A customer's monthly quota is changed, or removed (None)."""

    at: float
    customer: str
    quota: int | None


class SetWebhook(msgspec.Struct, frozen=True, tag=True):
    """A customer's webhook is registered or removed."""

    at: float
    customer: str
    registered: bool


class MissingCustomer(msgspec.Struct, frozen=True, tag=True):
    """A customer does not exist for so long: it is created later, or was deleted."""

    at: float
    customer: str
    seconds: float


class LostMessages(msgspec.Struct, frozen=True, tag=True):
    """A queue of submissions loses what it takes."""

    at: float
    queue: str
    seconds: float


class Redrive(msgspec.Struct, frozen=True, tag=True):
    """An operator redrives dead letters, and is interrupted after so many seconds if that is not enough.

    `customer`: whose; all if it is None.
    """

    at: float
    seconds: float
    customer: str | None = None


Fault = (
    Crash
    | Stop
    | Pause
    | Outage
    | Doubt
    | LostConnection
    | FullQueue
    | Backlog
    | Expired
    | MissingBindings
    | LostRecord
    | LostMessages
    | MonthEnd
    | SetQuota
    | SetWebhook
    | MissingCustomer
    | Redrive
)
Action = Submit | Fault


class Schedule(msgspec.Struct, frozen=True):
    """`seed` draws delays and fates; `skews` are the errors of processes' clocks in seconds."""

    seed: int
    actions: tuple[Action, ...]
    skews: dict[str, float] = {}

    @property
    def end(self) -> float:
        """When the last submission begins or the last fault ends, in virtual seconds. Some never end (`math.inf`)."""
        ends = [action.at + getattr(action, "seconds", 0.0) for action in self.actions]
        ends += [action.at + action.again for action in self.actions if isinstance(action, Submit)]
        return max((end for end in ends if end < math.inf), default=0.0)

    @property
    def month_end(self) -> float | None:
        """When a month ends; None if it does not."""
        return next((action.at for action in self.actions if isinstance(action, MonthEnd)), None)
