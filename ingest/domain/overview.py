"""What a running system looks like at one moment. None: unknown, and said so."""

import msgspec


class QueueState(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of a queue; rates are messages a second; `oldest` is the age of the first one in seconds."""

    name: str
    ready: int
    unacked: int | None = None
    consumers: int | None = None
    rate_in: float | None = None
    rate_out: float | None = None
    oldest: float | None = None


class BrokerState(msgspec.Struct, frozen=True, kw_only=True):
    """`problems` are sentences: away, alarms, missing queues."""

    name: str
    version: str = ""
    queues: list[QueueState] = []
    problems: list[str] = []


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """`round_trip` in seconds; `used` is the fullest node's or the file's, as text; `entries` are stored records."""

    name: str
    version: str = ""
    round_trip: float | None = None
    used: str = ""
    entries: int | None = None
    problems: list[str] = []


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """A process that shows metrics. `idle`: seconds since it last settled a delivery; `accepted` is tasks a second."""

    url: str
    process: str
    ready: bool | None = None
    brake: bool | None = None
    stalled: bool | None = None
    in_flight: int | None = None
    idle: float | None = None
    accepted: float | None = None


class DeadReason(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of one reason; `oldest` is an age in seconds."""

    reason: str
    count: int
    oldest: float | None = None


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """`at` is Unix seconds. `dead` None: not looked at; `dead_note` says why, or how old it is."""

    at: float
    broker: BrokerState
    store: StoreState
    processes: list[ProcessState] = []
    process_problems: list[str] = []
    dead: list[DeadReason] | None = None
    dead_note: str = ""
