"""The state of a running system at one moment. None means unknown, and is shown as such."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from ingest.domain import topology

N = TypeVar("N", int, float)


class QueueState(msgspec.Struct, frozen=True, kw_only=True):
    """What `ingest status` shows about a queue.

    Rates are in messages per second; `oldest` is the age of its first message in seconds.
    """

    name: str
    ready: int
    unacked: int | None = None
    consumers: int | None = None
    rate_in: float | None = None
    rate_out: float | None = None
    oldest: float | None = None


class BrokerState(msgspec.Struct, frozen=True, kw_only=True):
    """What `ingest status` shows about the broker. `problems` are sentences: unavailable, alarms, missing queues."""

    name: str
    version: str = ""
    queues: list[QueueState] = []
    problems: list[str] = []


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """What `ingest status` shows about the store. `problems` are sentences.

    `round_trip` is in seconds; `used` describes the fullest node or the file; `entries` counts records.
    """

    name: str
    version: str = ""
    round_trip: float | None = None
    used: str = ""
    entries: int | None = None
    problems: list[str] = []


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """What `ingest status` shows about a process that serves metrics.

    `address` is the one of several addresses of the host in `url`; empty if it has one. `version` is that of ingest;
    empty if unknown. `idle` is seconds since it last settled a delivery; `accepted` is tasks per second; `heavy` is the
    number of heavy customers. `breaker_open` is named `brake` in JSON.
    """

    url: str
    process: str
    address: str = ""
    version: str = ""
    ready: bool | None = None
    breaker_open: bool | None = msgspec.field(name="brake", default=None)
    stalled: bool | None = None
    in_flight: int | None = None
    idle: float | None = None
    accepted: float | None = None
    heavy: int | None = None


class DeadReason(msgspec.Struct, frozen=True, kw_only=True):
    """What `ingest status` shows about the dead letters of one reason; `oldest` is an age in seconds."""

    reason: str
    count: int
    oldest: float | None = None


class Problem(msgspec.Struct, frozen=True):
    """What needs an operator, as a sentence; `queue` is the name of the queue that it is about, if it is about one."""

    text: str
    queue: str = ""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The state of broker, store, dead letters and processes at one time.

    `at` is in Unix seconds. `dead` is None if it was not read; `dead_note` says why, or how old `dead` is.
    """

    at: float
    broker: BrokerState
    store: StoreState
    processes: list[ProcessState] = []
    process_problems: list[str] = []
    dead: list[DeadReason] | None = None
    dead_note: str = ""

    def problems(self) -> list[Problem]:
        """Return everything that needs an operator."""
        problems = [Problem(text) for text in (*self.broker.problems, *self.store.problems)]
        for queue in self.broker.queues:
            if queue.name == topology.INGEST_DEAD:
                if queue.ready:
                    text = f"{counted(queue.ready, 'dead letter')}: run `ingest dlq list`"
                    problems.append(Problem(text, queue.name))
            elif queue.ready and queue.name.endswith(topology.PARKED_SUFFIX):
                source = queue.name.removesuffix(topology.PARKED_SUFFIX)
                events = counted(queue.ready, "parked event")
                text = f"{queue.name}: {events}: correct the consumer of {source}, then let it consume this queue"
                problems.append(Problem(text, queue.name))
            elif queue.ready and queue.consumers == 0:
                consumer = "`ingest work`" if queue.name.startswith("ingest.") else "its consumer"
                text = f"{queue.name}: {counted(queue.ready, 'message')} and no consumer: start {consumer}"
                problems.append(Problem(text, queue.name))
        return problems + [Problem(text) for text in self.process_problems]

    def notes(self) -> list[str]:
        """Return what an operator should know but need not act on, as sentences."""
        versions = Counter(process.version for process in self.processes if process.version)
        if len(versions) < 2:
            return []
        each = ", ".join(f"{version} ({_processes(count)})" for version, count in sorted(versions.items()))
        return [f"versions differ, as during an upgrade: {each}"]


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 error` or `2,500 messages`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count:,} processes"


def by_class(queues: Iterable[QueueState]) -> Iterator[QueueState]:
    """Yield one state for all queues of a traffic class. Of consumers, it has the smallest number."""
    classes: dict[str, list[QueueState]] = {}
    for queue in queues:
        classes.setdefault(topology.class_of(queue.name), []).append(queue)
    for name, own in classes.items():
        yield QueueState(
            name=name,
            ready=sum(queue.ready for queue in own),
            unacked=_of_known(sum, [queue.unacked for queue in own]),
            consumers=_of_known(min, [queue.consumers for queue in own]),
            rate_in=_of_known(sum, [queue.rate_in for queue in own]),
            rate_out=_of_known(sum, [queue.rate_out for queue in own]),
            oldest=_of_known(max, [queue.oldest for queue in own if queue.ready]),
        )


def _of_known(function: Callable[[list[N]], N], values: Iterable[N | None]) -> N | None:
    """Apply a function to the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return function(known) if known else None
