"""Every metric as data, and the port that records them. Names and units follow Prometheus.

No label contains a customer, an id, or anything else that a client chooses, so the number of series is bounded.
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
    LIMITED = "limited"
    """HTTP 429: the rate limit of the customer."""
    UNAVAILABLE = "unavailable"
    """HTTP 503: a dependency is unavailable or the server is at capacity."""


# Upper bounds. A call takes milliseconds; a submission may wait hours for a server that is unavailable.
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
    "Submissions decided. door is their entry point: http (the shim) or amqp (direct producers, counted by the worker "
    "once settled); kind is task or batch; outcome is accepted, replay (http), duplicate (amqp), rejected, busy (409), "
    "limited (429) or unavailable (503). reason of rejected: as in ingest.dead (such as quota_exhausted), "
    "unauthorized, method_not_allowed or internal; of limited: rate_limited (the customer's rate limit); of "
    "unavailable: store, broker, overloaded, deadline or parser",
    "door",
    "kind",
    "outcome",
    "reason",
)
ACCEPTED_TASKS: Final = _counter(
    "ingest_accepted_tasks_total",
    "Tasks whose acceptance event is confirmed and whose submission is settled, counted by the worker; replays within "
    "a batch are not counted again",
    "door",
)
PAYLOAD_MISMATCHES: Final = _counter(
    "ingest_payload_mismatches_total", "Submissions under a used key whose body differs from the original", "door"
)
ACCEPTANCE_AGE: Final = _histogram(
    "ingest_acceptance_age_seconds",
    _AGE,
    "Time from submission to acceptance (all events confirmed, and settled). It starts at created_at for http; for "
    "amqp at the message's timestamp property (whole seconds), or without one at its admission. _count counts "
    "submissions",
    "door",
    "kind",
)
REPEATED_DELIVERIES: Final = _counter(
    "ingest_repeated_deliveries_total",
    "Deliveries that needed only an ack, because the ledger says that all their events are confirmed",
)
WAITING_SUBMISSIONS: Final = _counter(
    "ingest_waiting_submissions_total",
    "Submissions that an attempt could not finish and that wait for the next one; cause is busy (contended with "
    "another attempt), untrusted (its user is not in INGEST_TRUSTED_USERS), refused (a queue of events is full or not "
    "bound) or unavailable (store or broker)",
    "cause",
)

# HTTP

HTTP_REQUESTS: Final = _counter(
    "ingest_http_requests_total",
    "HTTP requests answered; route is a path of the API or other",
    "method",
    "route",
    "status",
)
HTTP_DURATION: Final = _histogram(
    "ingest_http_request_duration_seconds", _CALL, "Time from a request's headers to its complete answer", "route"
)
HTTP_IN_FLIGHT: Final = _gauge("ingest_http_requests_in_flight", "HTTP requests not answered yet", "process")

# Micro-batches: submissions that travel together

MICRO_BATCH_ITEMS: Final = _histogram(
    "ingest_cohort_items",
    _ITEMS,
    "Items of one micro-batch in one step; step is claim, charge, publish, queue (the shim records the confirm), "
    "settle or ack",
    "step",
)
ADMISSION_DURATION: Final = _histogram(
    "ingest_admission_duration_seconds", _CALL, "Duration of one admission of a micro-batch: claims and charges"
)
STORE_CALL_DURATION: Final = _histogram(
    "ingest_store_call_duration_seconds",
    _CALL,
    "Duration of one call to the store, with retries and read-backs; operation is claim, read, charge, refund, queue, "
    "settle, release, take_over, forget, permits (of rate limits), registry or ready",
    "operation",
)
STORE_ERRORS: Final = _counter(
    "ingest_store_errors_total",
    "Calls to the store that failed, as a whole or for some of their entries, because it was unavailable",
    "operation",
)
PUBLISH_DURATION: Final = _histogram(
    "ingest_publish_duration_seconds",
    _CALL,
    "Duration of one publish of a micro-batch, until every message has its outcome",
)
PUBLISHED_MESSAGES: Final = _counter(
    "ingest_published_messages_total",
    "Messages published; each submission of a bundle counts as one, those that workers separate from bundles do not "
    "count; outcome is confirmed, unroutable (returned), nacked, unknown (no answer), too_large (never sent) or unsent "
    "(no connection, or blocked)",
    "exchange",
    "outcome",
)

HEAVY_CUSTOMERS: Final = _gauge(
    "ingest_heavy_customers",
    "Customers whose submissions this HTTP process sends to ingest.heavy.*, because they take more than their share",
    "process",
)

# Broker

DELIVERIES: Final = _counter(
    "ingest_deliveries_total", "Submissions delivered to the worker, including redeliveries", "queue"
)
REDELIVERIES: Final = _counter("ingest_redeliveries_total", "Submissions delivered to the worker again", "queue")
SETTLED_DELIVERIES: Final = _counter(
    "ingest_settled_deliveries_total",
    "Deliveries finished by the worker; how is ack, or requeue (a failed attempt; it counts towards the delivery "
    "limit, except for a submission of a bundle, which is published as a message of its own)",
    "queue",
    "how",
)
DELIVERIES_IN_FLIGHT: Final = _gauge(
    "ingest_deliveries_in_flight",
    "Submissions delivered and not finished. The prefetch limits messages, and a bundle has up to 64 submissions",
    "process",
    "queue",
)
BROKER_CONNECTED: Final = _gauge(
    "ingest_broker_connected",
    "1 while connected; connection is publish, publish 2 or consume <queue>; one series, consume ingest.direct.*, is 1 "
    "while all consumers of queues of single producers are",
    "process",
    "connection",
)
BROKER_RECONNECTS: Final = _counter(
    "ingest_broker_reconnects_total",
    "Attempts to connect again after a connection was lost or failed",
    "connection",
)
BROKER_BLOCKED: Final = _counter(
    "ingest_broker_blocked_seconds_total",
    "Time during which the broker took no publishes (a resource alarm)",
    "connection",
)

# Health

READY: Final = _gauge("ingest_ready", "1 while the process is ready (see /readyz)", "process")
STALLED: Final = _gauge(
    "ingest_stalled", "1 while deliveries are held and none was finished for INGEST_WATCHDOG seconds", "process"
)
BREAKER_OPEN: Final = _gauge(
    "ingest_brake_engaged", "1 while the worker takes no deliveries because of an outage", "process"
)
LAST_PROGRESS: Final = _gauge(
    "ingest_last_progress_timestamp_seconds",
    "Unix time at which a delivery was last finished; until the first one, the start",
    "process",
)
BUILD_INFO: Final = _gauge("ingest_build_info", "Always 1; the labels say what is running", "version", "python_version")

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

Labels = tuple[str, ...]


class Meter(Protocol):
    """Records metrics. Callers record once per micro-batch if possible, never once per message.

    Label values are in the order of `Metric.labels`. No method raises or waits.
    """

    @property
    def on(self) -> bool:
        """Whether metrics are recorded. If not, callers can skip preparing values."""
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
    """A `Meter` that records nothing."""

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
        Reason.CUSTOMER_DISABLED,
        "unauthorized",
        "method_not_allowed",
        "internal",
    ),
    Outcome.UNAVAILABLE: ("store", "broker", "overloaded", "deadline", "parser"),
}
_REASONS: Final[dict[EntryPoint, dict[Outcome, tuple[str, ...]]]] = {
    EntryPoint.HTTP: {
        Outcome.ACCEPTED: ("",),
        Outcome.REPLAY: ("",),
        Outcome.BUSY: ("",),
        Outcome.LIMITED: ("rate_limited",),
        **_HTTP_REASONS,
    },
    EntryPoint.AMQP: {Outcome.ACCEPTED: ("",), Outcome.DUPLICATE: ("",), Outcome.REJECTED: tuple(Reason)},
}


def init_series(meter: Meter, entry_point: EntryPoint) -> None:
    """Create every series with the value 0: a counter that starts with its first event has no rate for it."""
    for outcome, reasons in _REASONS[entry_point].items():
        for reason in reasons:
            for kind in SubmissionKind:
                meter.add(SUBMISSIONS, 0, entry_point, kind, outcome, reason)
    meter.add(PAYLOAD_MISMATCHES, 0, entry_point)
