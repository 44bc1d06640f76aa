"""Whether a process is ready, and why not. It is not liveness: an outage does not make a process dead."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import msgspec
import structlog

from ingest.domain import metrics
from ingest.domain.errors import Unavailable
from ingest.domain.metrics import Meter
from ingest.domain.ports import ConnectionState
from ingest.domain.topology import OWN_PREFIX, label_of
from ingest.telemetry.broker import MeteredBroker, MeteredConsumer

BEAT: Final = 1.0
"""Seconds between two checks."""
_STARTING: Final = "starting"
_OUTAGES: Final = {"store": "store_unavailable", "broker": "broker_not_ready"}
"""Kinds of problems and their log events. The adapter logs the reason of a lost connection, `broker_unavailable`."""
_LOGGED_ELSEWHERE: Final = frozenset({*_OUTAGES, "breaker"})
_ANSWER_TIMEOUT: Final = 2.0
STALE: Final = 10.0
"""Seconds after which a report no longer counts as ready: its process hangs."""
DEAD: Final = 60.0
"""Seconds after which a process without a report counts as dead."""

_log = structlog.get_logger(__name__)


class Report(msgspec.Struct):
    """The state of a process.

    `at` is in seconds of the machine's monotonic clock. It is ready if it has no `problems`.
    """

    process: str
    pid: int
    at: float
    problems: list[str] = []

    def seconds_old(self) -> float:
        return time.monotonic() - self.at


class Health:
    """Checks one process once per second.

    Args:
        broker: its publishers and consumers are checked.
        store_ready: raises StoreUnavailable unless the store takes writes.
        meter: records the gauges.
        process: the number of the process under its supervisor.
        watchdog: seconds after which it is a problem that deliveries are held and none is finished.
        report: receives each report.
        clock: monotonic seconds.
        pause: seconds between two checks.
    """

    def __init__(
        self,
        broker: MeteredBroker,
        store_ready: Callable[[], Awaitable[None]],
        meter: Meter,
        process: str,
        watchdog: float,
        report: Callable[[Report], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        pause: float = BEAT,
    ) -> None:
        self._pause = pause
        self._broker = broker
        self._store_ready = store_ready
        self._meter = meter
        self._process = process
        self._watchdog = _Watchdog(watchdog, clock)
        self._report = report
        self._clock = clock
        self._seen: dict[str, ConnectionState] = {}
        self._labels: Collection[str] = ()
        self._connection_labels: set[str] = set()
        self._last: frozenset[str] = frozenset({_STARTING})
        self._ready_tries = 0
        self.breaker_open: Callable[[], bool] = lambda: False
        """Whether the worker's circuit breaker is open."""
        self.worker_problems: Callable[[], list[str]] = list
        """What an operator must correct so that the worker can continue."""
        self.in_flight: Callable[[], int] = lambda: 0
        """The number of HTTP requests that are not answered yet."""

    async def run(self) -> None:
        """Check until cancelled."""
        last_failure = ""
        while True:
            try:
                await self.check()
                last_failure = ""
            except Exception as error:  # noqa: BLE001 - a failing check must not stop the process
                if repr(error) != last_failure:
                    _log.exception("health_check_failed")
                last_failure = repr(error)
            await asyncio.sleep(self._pause)

    async def check(self) -> None:
        """Check once: report the result and set the gauges."""
        problems = [*await self._dependencies(), *self._connections(), *self._progress()]
        self._log(problems)
        self._meter.set(metrics.READY, not problems)
        self._meter.set(metrics.HTTP_IN_FLIGHT, self.in_flight())
        self._report(Report(self._process, os.getpid(), self._clock(), problems))

    def _log(self, problems: list[str]) -> None:
        """Log outages at every check (`OutageLines` passes one line a minute), other kinds of problems once.

        The line `ready` follows when there are none, at the start and after every change.
        """
        kinds = frozenset(problem.partition(":")[0] for problem in problems)
        if _STARTING in kinds:
            return
        for kind, event in _OUTAGES.items():
            if error := next((problem for problem in problems if problem.startswith(f"{kind}: ")), None):
                _log.warning(event, error=error.removeprefix(f"{kind}: "))
        if kinds - self._last - _LOGGED_ELSEWHERE:
            _log.warning("not_ready", problems=problems)
        tries = sum(state.reconnects for state in self._seen.values())
        if not kinds and (self._last or tries != self._ready_tries):
            _log.info("ready")
            self._ready_tries = tries
        self._last = kinds

    async def _dependencies(self) -> list[str]:
        if not self._broker.publishers:
            return [f"{_STARTING}: no connection to the broker yet"]
        checks = [("store", self._store_ready), *[("broker", publisher.ready) for publisher in self._broker.publishers]]
        problems = await asyncio.gather(*[_problem(name, ready) for name, ready in checks])
        return [problem for problem in problems if problem]

    def _connections(self) -> list[str]:
        states = self._broker.connections()
        all_connected: dict[str, bool] = {}
        for state in states:
            before = self._seen.get(state.name) or ConnectionState(state.name)
            self._seen[state.name] = state
            purpose, _, queue = state.name.partition(" ")
            label = f"{purpose} {label_of(queue)}".rstrip()
            all_connected[label] = state.connected and all_connected.get(label, True)
            self._meter.add(metrics.BROKER_RECONNECTS, max(0, state.reconnects - before.reconnects), label)
            self._meter.add(metrics.BROKER_BLOCKED, max(0.0, state.blocked_seconds - before.blocked_seconds), label)
        for label in self._connection_labels - all_connected.keys():
            self._meter.set(metrics.BROKER_CONNECTED, 1, label)  # its queues were left
        self._connection_labels = {*all_connected}
        for label, connected in all_connected.items():
            self._meter.set(metrics.BROKER_CONNECTED, connected, label)
        # A process can work if only the queue of one producer is missing.
        return [
            f"broker: no connection to {state.name}"
            for state in states
            if not state.connected and OWN_PREFIX not in state.name
        ]

    def _progress(self) -> list[str]:
        consumers = [consumer for consumer in self._broker.consumers if not consumer.is_closed]
        held = Counter(dict.fromkeys(self._labels, 0))
        for consumer in consumers:
            held[consumer.label] += consumer.held
        self._labels = held.keys()  # also those whose queues were left
        for label, count in held.items():
            self._meter.set(metrics.DELIVERIES_IN_FLIGHT, count, label)
        problems = self._watchdog.check(consumers)
        breaker_open = self.breaker_open()
        if consumers:
            self._meter.set(metrics.STALLED, bool(problems))
            self._meter.set(metrics.BREAKER_OPEN, breaker_open)
            self._meter.set(metrics.LAST_PROGRESS, max(consumer.last_finished for consumer in consumers))
        if breaker_open:
            problems.append("breaker: open; no deliveries are attempted until the broker and the store are available")
        return problems + self.worker_problems()


class _Watchdog:
    """Finds queues whose deliveries are held while none is finished."""

    def __init__(self, limit: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._progress: dict[str, tuple[float, float]] = {}

    def check(self, consumers: Sequence[MeteredConsumer]) -> list[str]:
        now = self._clock()
        problems = []
        for consumer in consumers:
            finished, since = self._progress.get(consumer.queue, (0.0, now))
            if not consumer.held or consumer.last_finished != finished:
                since = now
            self._progress[consumer.queue] = (consumer.last_finished, since)
            if now - since > self._limit:
                stalled = f"{consumer.held} deliveries of {consumer.queue} held, none finished for {now - since:.0f} s"
                problems.append(f"watchdog: {stalled}")
        return problems


async def _problem(name: str, ready: Callable[[], Awaitable[None]]) -> str | None:
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            await ready()
    except Unavailable as error:
        return f"{name}: {error}"
    except TimeoutError:
        return f"{name}: no answer within {_ANSWER_TIMEOUT:.0f} s"
    return None
