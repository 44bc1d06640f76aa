"""Whether a process is ready, and why not. Liveness is another matter: an outage does not make a process dead."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from ingest.domain import metrics
from ingest.domain.errors import Unavailable
from ingest.domain.metrics import Meter
from ingest.domain.ports import ConnectionState
from ingest.telemetry.broker import MeteredBroker, MeteredConsumer

BEAT: Final = 1.0
"""Seconds between two looks."""
_STARTING: Final = "starting"
_ANSWER_WITHIN: Final = 2.0
STALE: Final = 10.0
"""Seconds after which a report counts no more for readiness: its process hangs."""
DEAD: Final = 60.0
"""Seconds after which a process without a report counts as dead."""

_log = structlog.get_logger(__name__)


class Report(msgspec.Struct):
    """How a process is. `at`: seconds of the machine's monotonic clock; not ready where there are `problems`."""

    process: str
    pid: int
    at: float
    problems: list[str] = []

    def seconds_old(self) -> float:
        return time.monotonic() - self.at


class Health:
    """Looks at one process once a second.

    Args:
        broker: its publishers and consumers are asked.
        store_ready: raises StoreUnavailable unless the store takes writes.
        meter: told about what has no event of its own.
        process: its name among its supervisor's.
        watchdog: seconds after which deliveries that are held and not settled are a problem.
        tell: gets each report.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        broker: MeteredBroker,
        store_ready: Callable[[], Awaitable[None]],
        meter: Meter,
        process: str,
        watchdog: float,
        tell: Callable[[Report], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._store_ready = store_ready
        self._meter = meter
        self._process = process
        self._watchdog = _Watchdog(watchdog, clock)
        self._tell = tell
        self._clock = clock
        self._seen: dict[str, ConnectionState] = {}
        self._last: frozenset[str] = frozenset()
        self.breaker_open: Callable[[], bool] = lambda: False
        """Whether the worker takes no deliveries because of an outage."""
        self.in_flight: Callable[[], int] = lambda: 0
        """HTTP requests not answered yet."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - what only looks must not stop what works
                _log.exception("health_check_failed")
            await asyncio.sleep(BEAT)

    async def look(self) -> None:
        """One look: report it, and set the gauges."""
        problems = [*await self._dependencies(), *self._connections(), *self._progress()]
        self._log(problems)
        self._meter.set(metrics.READY, not problems)
        self._meter.set(metrics.HTTP_IN_FLIGHT, self.in_flight())
        self._tell(Report(self._process, os.getpid(), self._clock(), problems))

    def _log(self, problems: list[str]) -> None:
        """A line when something is wrong that was not before, and when all is well again."""
        kinds = frozenset(problem.partition(":")[0] for problem in problems)
        if _STARTING in kinds:
            return
        if kinds - self._last:
            _log.warning("not_ready", problems=problems)
        elif self._last and not kinds:
            _log.info("ready_again")
        self._last = kinds

    async def _dependencies(self) -> list[str]:
        if not self._broker.publishers:
            return [f"{_STARTING}: no connection to the broker yet"]
        checks = [("store", self._store_ready), *[("broker", each.ready) for each in self._broker.publishers]]
        found = await asyncio.gather(*[_problem(name, ready) for name, ready in checks])
        return [problem for problem in found if problem]

    def _connections(self) -> list[str]:
        problems = []
        for state in self._broker.connections():
            before = self._seen.get(state.name) or ConnectionState(state.name)
            self._seen[state.name] = state
            self._meter.set(metrics.BROKER_CONNECTED, state.connected, state.name)
            self._meter.add(metrics.BROKER_RECONNECTS, max(0, state.reconnects - before.reconnects), state.name)
            self._meter.add(
                metrics.BROKER_BLOCKED, max(0.0, state.blocked_seconds - before.blocked_seconds), state.name
            )
            if not state.connected:
                problems.append(f"broker: no connection to {state.name}")
        return problems

    def _progress(self) -> list[str]:
        consumers = self._broker.consumers
        for consumer in consumers:
            self._meter.set(metrics.DELIVERIES_IN_FLIGHT, consumer.held, consumer.queue)
        problems = self._watchdog.look(consumers)
        breaker_open = self.breaker_open()
        if consumers:
            self._meter.set(metrics.STALLED, bool(problems))
            self._meter.set(metrics.BREAKER_OPEN, breaker_open)
            self._meter.set(metrics.LAST_PROGRESS, max(consumer.last_settled for consumer in consumers))
        if breaker_open:
            problems.append("breaker: open; no deliveries are attempted until the broker and the store are available")
        return problems


class _Watchdog:
    """Tells queues whose deliveries are held while none is settled."""

    def __init__(self, limit: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._moved: dict[str, tuple[float, float]] = {}

    def look(self, consumers: Sequence[MeteredConsumer]) -> list[str]:
        now = self._clock()
        problems = []
        for consumer in consumers:
            settled, moved = self._moved.get(consumer.queue, (0.0, now))
            if not consumer.held or consumer.last_settled != settled:
                moved = now
            self._moved[consumer.queue] = (consumer.last_settled, moved)
            if now - moved > self._limit:
                stalled = f"{consumer.held} deliveries of {consumer.queue} held, none settled for {now - moved:.0f} s"
                problems.append(f"watchdog: {stalled}")
        return problems


async def _problem(name: str, ready: Callable[[], Awaitable[None]]) -> str | None:
    try:
        async with asyncio.timeout(_ANSWER_WITHIN):
            await ready()
    except Unavailable as error:
        return f"{name}: {error}"
    except TimeoutError:
        return f"{name}: no answer within {_ANSWER_WITHIN:.0f} s"
    return None
