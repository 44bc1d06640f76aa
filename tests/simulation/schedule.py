"""A schedule: what clients do and what goes wrong, at which time. It is drawn from a seed and can be shortened."""

from typing import Final

import msgspec

SHIMS: Final = ("shim0", "shim1")
WORKERS: Final = ("worker0", "worker1", "worker2")
CUSTOMERS: Final = ("free", "paying", "strict")
"""`free` has a quota of a few tasks, `paying` one that is never reached, and `strict` also wants conflicts refused."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A client submits a task (`items` 0) or a batch, over HTTP or directly, and retries up to `attempts` times.

    `key` and `item_key` (of the batch's first item) are idempotency keys; `body` chooses one of a few bodies.
    """

    at: float
    customer: str
    key: str | None
    body: int
    items: int = 0
    item_key: str | None = None
    direct: bool = False
    attempts: int = 10


class Crash(msgspec.Struct, frozen=True, tag=True):
    at: float
    process: str
    down: float


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
    """Calls to a server may be lost, take effect without an answer, or take effect late."""

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


Action = Submit | Crash | Pause | Outage | Doubt | LostConnection | FullQueue | MissingBindings | LostRecord


class Schedule(msgspec.Struct, frozen=True):
    """`seed` draws delays and fates; `skews` are the errors of processes' clocks in seconds."""

    seed: int
    actions: tuple[Action, ...]
    skews: dict[str, float] = {}
