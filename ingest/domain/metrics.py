"""Every metric, as data, and the port that counts them. Names and units as Prometheus has them.

No label holds a customer, an id or anything else a client chooses: the number of series is bounded.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, Literal, Protocol

import msgspec

from ingest.domain.errors import Reason
from ingest.domain.identity import SubmissionKind

Type = Literal["counter", "gauge", "histogram"]


class EntryPoint(StrEnum):
    """Where a submission enters. The metrics' label is named `door`."""

    HTTP = "http"
    """`POST` to the shim."""
    AMQP = "amqp"
    """Published to the exchange by a direct producer."""


class Outcome(StrEnum):
    """What became of a submission at its entry point."""

    ACCEPTED = "accepted"
    REPLAY = "replay"
    """HTTP: the key was used before; answered 200."""
    DUPLICATE = "duplicate"
    """AMQP: the key was used before; a `submission.duplicate` event is published."""
    REJECTED = "rejected"
    BUSY = "busy"
    """HTTP 409: another request with the same key is in progress."""
    UNAVAILABLE = "unavailable"
    """HTTP 503: a dependency is unavailable or the server is at capacity."""


# Upper bounds. A call takes milliseconds; a submission may wait for a server that is away for hours.
_CALL: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_AGE: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    1800.0,
    7200.0,
    43200.0,
)
_ITEMS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)


class Metric(msgspec.Struct, frozen=True):
    """One metric. `buckets` are a histogram's upper bounds, without infinity."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)


def _counter(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, "counter", help_, labels)


def _gauge(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, "gauge", help_, labels)


def _histogram(name: str, buckets: tuple[float, ...], help_: str, *labels: str) -> Metric:
    return Metric(name, "histogram", help_, labels, buckets)


# Submissions

SUBMISSIONS: Final = _counter(
    "ingest_submissions_total",
    "Submissions decided at a door: door http (the shim) or amqp (direct producers; counted by the worker, once "
    "settled); kind task or batch; outcome accepted, replay (http), duplicate (amqp), rejected, busy (409) or "
    "unavailable (503). reason of rejected: as in ingest.dead (quota refusals: quota_exhausted), unauthorized, "
    "method_not_allowed or internal; of unavailable: store, broker, overloaded or deadline",
    "door",
    "kind",
    "outcome",
    "reason",
)
ACCEPTED_TASKS: Final = _counter(
    "ingest_accepted_tasks_total",
    "Tasks whose acceptance event the broker has confirmed and whose submission is settled, counted by the worker; "
    "replays within a batch are not counted again",
    "door",
)
PAYLOAD_MISMATCHES: Final = _counter(
    "ingest_payload_mismatches_total", "Submissions under a used key with another body than the original", "door"
)
ACCEPTANCE_AGE: Final = _histogram(
    "ingest_acceptance_age_seconds",
    _AGE,
    "From submitted to accepted (all events confirmed and settled). Submitted is created_at for http; for amqp the "
    "message's timestamp property (whole seconds) where it has one, else its admission. _count counts submissions",
    "door",
    "kind",
)
REPEATED_DELIVERIES: Final = _counter(
    "ingest_repeated_deliveries_total", "Deliveries dropped because the ledger says that all their events are out"
)
WAITING_SUBMISSIONS: Final = _counter(
    "ingest_waiting_submissions_total",
    "Submissions that an attempt could not finish and that wait for the next; cause busy (somebody else is at it) or "
    "unavailable (store or broker)",
    "cause",
)

# HTTP

HTTP_REQUESTS: Final = _counter(
    "ingest_http_requests_total",
    "HTTP requests answered; route is a path of the API, or other",
    "method",
    "route",
    "status",
)
HTTP_DURATION: Final = _histogram(
    "ingest_http_request_duration_seconds", _CALL, "From a request's headers to its whole answer", "route"
)
HTTP_IN_FLIGHT: Final = _gauge("ingest_http_requests_in_flight", "HTTP requests not answered yet", "process")

# Steps: lists of submissions that travel together

COHORT_ITEMS: Final = _histogram(
    "ingest_cohort_items",
    _ITEMS,
    "Items that one call of a step carried; step claim, charge, publish, queue (the shim notes the confirm), settle or "
    "ack",
    "step",
)
ADMISSION_DURATION: Final = _histogram(
    "ingest_admission_duration_seconds", _CALL, "One admission of a list of submissions: claims and charges"
)
STORE_CALL_DURATION: Final = _histogram(
    "ingest_store_call_duration_seconds",
    _CALL,
    "One call to the store, retries and read-backs included; operation claim, read, charge, refund, queue, settle, "
    "release, take_over, forget, registry or ready",
    "operation",
)
STORE_ERRORS: Final = _counter(
    "ingest_store_errors_total", "Calls to the store that failed because it was away", "operation"
)
PUBLISH_DURATION: Final = _histogram(
    "ingest_publish_duration_seconds", _CALL, "One publish of a list of messages, until each has its outcome"
)
PUBLISHED_MESSAGES: Final = _counter(
    "ingest_published_messages_total",
    "Messages published; outcome confirmed, unroutable (returned), nacked, unknown (no answer) or unsent (no "
    "connection, or blocked)",
    "exchange",
    "outcome",
)

# Broker

DELIVERIES: Final = _counter("ingest_deliveries_total", "Messages delivered to the worker, repeats included", "queue")
REDELIVERIES: Final = _counter("ingest_redeliveries_total", "Deliveries that were delivered before", "queue")
SETTLED_DELIVERIES: Final = _counter(
    "ingest_settled_deliveries_total",
    "Deliveries given back to the broker; how ack, requeue (a failed attempt, counts to the delivery limit) or discard",
    "queue",
    "how",
)
DELIVERIES_IN_FLIGHT: Final = _gauge(
    "ingest_deliveries_in_flight", "Deliveries not acknowledged yet, at most the prefetch", "process", "queue"
)
BROKER_CONNECTED: Final = _gauge(
    "ingest_broker_connected",
    "1 while connected; connection publish, publish 2 or consume <queue>",
    "process",
    "connection",
)
BROKER_RECONNECTS: Final = _counter(
    "ingest_broker_reconnects_total",
    "Attempts to connect again after a connection was lost or could not be made",
    "connection",
)
BROKER_BLOCKED: Final = _counter(
    "ingest_broker_blocked_seconds_total",
    "Time for which the broker took no publishes (a resource alarm)",
    "connection",
)

# Health

READY: Final = _gauge("ingest_ready", "1 while the process is ready, as /readyz says", "process")
STALLED: Final = _gauge(
    "ingest_stalled", "1 while deliveries are held and none was settled for INGEST_WATCHDOG seconds", "process"
)
BRAKE: Final = _gauge("ingest_brake_engaged", "1 while the worker takes no deliveries because of an outage", "process")
LAST_PROGRESS: Final = _gauge(
    "ingest_last_progress_timestamp_seconds",
    "Unix time at which a delivery was last settled (at first: the start)",
    "process",
)
BUILD_INFO: Final = _gauge("ingest_build_info", "Always 1; what is running", "version", "python_version")

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

Labels = tuple[str, ...]


class Meter(Protocol):
    """Counts and observes. Called once a list of submissions where it can be, never once a message.

    Label values stand in the order of `Metric.labels`. Nothing here raises or waits.
    """

    @property
    def on(self) -> bool:
        """Whether anybody listens: where not, callers need not put together what they would tell."""
        ...

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Add to a counter."""
        ...

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, metric: Metric, values: Iterable[float], *labels: str) -> None:
        """Observe values with a histogram."""
        ...


class NoMeter:
    """`Meter` where nobody listens."""

    on = False

    def add(self, metric: Metric, amount: float, *labels: str) -> None: ...

    def set(self, metric: Metric, value: float, *labels: str) -> None: ...

    def observe(self, metric: Metric, values: Iterable[float], *labels: str) -> None: ...


NO_METER: Final = NoMeter()

_HTTP_REASONS: Final = {
    Outcome.REJECTED: (
        Reason.MALFORMED,
        Reason.INVALID,
        Reason.TOO_LARGE,
        Reason.UNSUPPORTED_CONTENT_TYPE,
        Reason.KEY_CONFLICT,
        Reason.QUOTA_EXHAUSTED,
        "unauthorized",
        "method_not_allowed",
        "internal",
    ),
    Outcome.UNAVAILABLE: ("store", "broker", "overloaded", "deadline"),
}
_REASONS: Final[dict[EntryPoint, dict[Outcome, tuple[str, ...]]]] = {
    EntryPoint.HTTP: {Outcome.ACCEPTED: ("",), Outcome.REPLAY: ("",), Outcome.BUSY: ("",), **_HTTP_REASONS},
    EntryPoint.AMQP: {Outcome.ACCEPTED: ("",), Outcome.DUPLICATE: ("",), Outcome.REJECTED: tuple(Reason)},
}


def init_series(meter: Meter, entry_point: EntryPoint) -> None:
    """Create every series with the value 0: a counter that starts with its first event has no rate for it."""
    for outcome, reasons in _REASONS[entry_point].items():
        for reason in reasons:
            for kind in SubmissionKind:
                meter.add(SUBMISSIONS, 0, entry_point, kind, outcome, reason)
    meter.add(PAYLOAD_MISMATCHES, 0, entry_point)
