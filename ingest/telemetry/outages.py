"""Log lines of outages: at most one a minute for each dependency of a process.

In an outage, every connection, call and request fails, and each of them logs it. That is dozens of lines a second which
say the same. The structlog processor `OutageLines` lets one of them pass in a minute. It says how often the same event
occurred since its last line (`times`), and which other ones were left out (`left_out`).
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog

BROKER: Final = "broker"
STORE: Final = "store"
INTERVAL: Final = 60.0
"""Seconds between two lines about the same dependency."""
UNAVAILABLE: Final = {"broker_unavailable": BROKER, "store_unavailable": STORE}
"""Events that say why a dependency is unavailable. Each is one failed try."""
CONSEQUENCES: Final = {
    "broker_connection_failed": BROKER,
    "broker_connection_lost": BROKER,
    "broker_connection_lost_during_setup": BROKER,
    "broker_not_ready": BROKER,
    "publish_unconfirmed": BROKER,
    "admission_failed": STORE,
    "attempt_failed": STORE,
    "charges_undecided": STORE,
    "claim_release_failed": STORE,
    "ledger_changes_pending": STORE,
    "ledger_changes_retried": STORE,
    "ledger_entries_undecided": STORE,
    "permits_undecided": STORE,
    "queued_not_recorded": STORE,
    "quota_changes_in_doubt": STORE,
    "refund_failed": STORE,
    "refund_of_doubts_failed": STORE,
    "settle_failed": STORE,
    "store_call_failed": STORE,
}
"""Events that follow from an outage, or from trouble with a single call. They pass if no other line says more."""
REFUSED: Final = "publish_refused"
"""The broker does not take a customer's events or dead letters. It has lines of its own, at most one a minute for each
customer, so that neither outages nor other customers hide it."""
MOST_REFUSALS: Final = 20
"""Customers that have such a line in a minute: a full queue of events concerns all of them."""
READY: Final = "ready"
"""The event that ends an outage. It passes at the start, and after a line about an outage."""


class _Lines(msgspec.Struct):
    """The lines about one dependency. Times are in seconds of the clock.

    `passed_at`: when the last line passed; `cause_at`: the last one of UNAVAILABLE; `cause_seen_at`: the last event of
    UNAVAILABLE, whether it passed or not. `left_out` counts the events since the last line.
    """

    passed_at: float | None = None
    cause_at: float | None = None
    cause_seen_at: float | None = None
    left_out: Counter[str] = msgspec.field(default_factory=Counter)


class _Refusals:
    """The lines about refusals. `_passed` maps a customer to the time of its last line and to the events since then."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._passed: dict[str, tuple[float, int]] = {}
        self._left_out = 0

    def fields(self, cust_id: str) -> dict[str, Any]:
        """Return what a line says in addition. Raises structlog.DropEvent if it does not pass."""
        now = self._clock()
        at, times = self._passed.pop(cust_id, (None, 0))
        if at is not None and now - at < INTERVAL:
            self._passed[cust_id] = at, times + 1
            raise structlog.DropEvent
        self._passed = {other: line for other, line in self._passed.items() if now - line[0] < INTERVAL}
        if len(self._passed) >= MOST_REFUSALS:
            self._left_out += 1
            raise structlog.DropEvent
        self._passed[cust_id] = now, 0
        left_out, self._left_out = self._left_out, 0
        return {
            **({"times": times + 1} if at is not None else {}),
            **({"left_out": {REFUSED: left_out}} if left_out else {}),
        }


class OutageLines:
    """A structlog processor.

    Args:
        places: fields for the lines about each dependency: where it is, and the setting that says so.
        clock: monotonic seconds.
    """

    def __init__(self, places: Mapping[str, Mapping[str, str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._lines = {BROKER: _Lines(), STORE: _Lines()}
        self._refusals = _Refusals(clock)
        self._ready_passes = True

    def __call__(self, _: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        name = str(event.get("event"))
        if name == READY:
            return self._ready(event)
        if name == REFUSED:
            return {**event, **self._refusals.fields(str(event.get("cust_id")))}
        dependency = UNAVAILABLE.get(name) or CONSEQUENCES.get(name)
        if dependency is None:
            return event
        if not self._passes(name, self._lines[dependency]):
            raise structlog.DropEvent
        return {**event, **self._fields(name, dependency)}

    def _passes(self, name: str, lines: _Lines) -> bool:
        now = self._clock()
        if name in UNAVAILABLE:
            lines.cause_seen_at = now
            earlier = [lines.cause_at]
        else:
            earlier = [lines.passed_at, lines.cause_seen_at]
        if any(at is not None and now - at < INTERVAL for at in earlier):
            lines.left_out[name] += 1
            return False
        self._ready_passes = True
        return True

    def _fields(self, name: str, dependency: str) -> dict[str, Any]:
        """Return what a line says in addition; begin to count for the next one."""
        lines = self._lines[dependency]
        fields: dict[str, Any] = dict(self._places.get(dependency, {}))
        if lines.passed_at is not None:
            fields["times"] = lines.left_out.pop(name, 0) + 1
        if lines.left_out:
            fields["left_out"] = dict(sorted(lines.left_out.items()))
        lines.passed_at, lines.left_out = self._clock(), Counter()
        if name in UNAVAILABLE:
            lines.cause_at = lines.passed_at
        return fields

    def _ready(self, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if not self._ready_passes:
            raise structlog.DropEvent
        self._ready_passes = False
        return event
