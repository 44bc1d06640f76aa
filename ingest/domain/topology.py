"""The AMQP topology as data. It is declared on the broker, compared with the broker, and exported, from here."""

from typing import Any

import msgspec

SUBMISSIONS = "asg.submissions"
EVENTS = "asg.events"
DEAD = "asg.dead"
UNMATCHED = "asg.unmatched"
"""The alternate exchange of asg.submissions: it gets what no binding there matches."""
PARKED = "asg.parked"
"""Consumers publish the events to it that they cannot handle. The routing key is the name of the queue."""

HTTP_PREFIX = "ingest.http."
HEAVY_PREFIX = "ingest.heavy."
HTTP_BULK = f"{HTTP_PREFIX}bulk"
"""For submissions with many bytes: RabbitMQ limits what it sends to a consumer only by messages."""
HEAVY_BULK = f"{HEAVY_PREFIX}bulk"
"""The same, of heavy customers."""
MAX_QUEUES = 16
"""The most numbered queues of a traffic class."""
INGEST_TASKS = "ingest.tasks"
"""For direct producers that have no queues of their own."""
INGEST_BATCHES = "ingest.batches"
"""The same, for batches."""
OWN_PREFIX = "ingest.direct."
"""The names of queues that belong to single direct producers begin with this."""
FEEDBACK_PREFIX = "feedback."
"""The same, of queues that report to a direct producer what was rejected or a duplicate."""
MAX_FEEDBACK = 100_000
"""The most reports in such a queue; the oldest are dropped."""
MAX_FEEDBACK_BYTES = 32 * 1024 * 1024
PARKED_SUFFIX = ".parked"
"""The names of queues of parked events end with this."""
CONSENSUS_TASKS = "consensus.tasks"
WEBHOOK_DISPATCH = "webhook.dispatch"
INGEST_DEAD = "ingest.dead"

DELIVERY_LIMIT = 20
"""How often the delivery of one submission may fail; it is RabbitMQ 4's default. Up to RabbitMQ 4.2 every return
counts, also when a connection breaks. 20 is low enough to remove a submission that crashes workers, and enough for an
outage.
"""
SUSPECT = 2
"""Returns that make a delivery a suspect. A single return can happen to any delivery."""
NO_LIMIT = 2**31 - 1
"""A delivery limit that is never reached.

Without a policy RabbitMQ 4 drops a message after 20 deliveries; that must not
happen to dead letters that are looked at, nor to events whose consumer fails. RabbitMQ 3 refuses -1."""


class Queue(msgspec.Struct, frozen=True):
    """A quorum queue bound to one topic exchange.

    The leader of a `balanced` one is on the node with the fewest leaders; of others, on the node that the declaring
    client is connected to.
    """

    name: str
    exchange: str
    binding: str
    delivery_limit: int
    dead_letter_exchange: str | None = None
    balanced: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of its declaration on RabbitMQ."""
        quorum = {"x-queue-type": "quorum"}
        return quorum | {"x-queue-leader-locator": "balanced"} if self.balanced else quorum


def route_to(queue: str) -> str:
    """Return how the routing keys for a queue of the shim begin: `http.0` for `ingest.http.0`."""
    return queue.removeprefix("ingest.")


def class_of(queue: str) -> str:
    """Return the name of all queues of a traffic class together: `ingest.http.*` for `ingest.http.0`."""
    prefix = next((prefix for prefix in (HTTP_PREFIX, HEAVY_PREFIX, OWN_PREFIX) if queue.startswith(prefix)), None)
    return queue if prefix is None else f"{prefix}*"


def is_admitted_queue(name: str) -> bool:
    """Return whether a queue is one of what the shim admits."""
    return name.startswith((HTTP_PREFIX, HEAVY_PREFIX))


def admitted_queue(name: str) -> Queue:
    """Return a queue of what the shim admits."""
    return Queue(name, SUBMISSIONS, f"{route_to(name)}.#", DELIVERY_LIMIT, DEAD, balanced=True)


def own_queues(cust_id: str) -> tuple[Queue, Queue]:
    """Return the queues of a direct producer that has some of its own: for tasks, and for batches."""
    return (
        Queue(f"{OWN_PREFIX}{cust_id}.tasks", SUBMISSIONS, f"task.submitted.{cust_id}", DELIVERY_LIMIT, DEAD, True),
        Queue(f"{OWN_PREFIX}{cust_id}.batches", SUBMISSIONS, f"batch.submitted.{cust_id}", DELIVERY_LIMIT, DEAD, True),
    )


def feedback_queue(cust_id: str) -> Queue:
    """Return the queue that reports to a direct producer: `submission.rejected` and `submission.duplicate`."""
    return Queue(f"{FEEDBACK_PREFIX}{cust_id}", EVENTS, f"submission.*.{cust_id}", NO_LIMIT, balanced=True)


def producer_queues(cust_id: str) -> tuple[Queue, ...]:
    """Return all queues that belong to a direct producer."""
    return (*own_queues(cust_id), feedback_queue(cust_id))


def label_of(queue: str) -> str:
    """Return the name of a queue in metrics. The queues of all producers have the same, because no label has an id."""
    return class_of(queue) if queue.startswith(OWN_PREFIX) else queue


EXCHANGES = (SUBMISSIONS, EVENTS, DEAD, UNMATCHED, PARKED)


class Layout(msgspec.Struct, frozen=True):
    """How many numbered queues the shim has, for ordinary traffic and for that of heavy customers.

    With several, their leaders can be on different nodes of RabbitMQ. Workers consume a surplus queue while it has
    messages (`worker.surplus_queues`).
    """

    http: int = 2
    heavy: int = 1

    @property
    def http_queues(self) -> tuple[str, ...]:
        return tuple(f"{HTTP_PREFIX}{number}" for number in range(self.http))

    @property
    def heavy_queues(self) -> tuple[str, ...]:
        return tuple(f"{HEAVY_PREFIX}{number}" for number in range(self.heavy))

    @property
    def admitted_queues(self) -> tuple[str, ...]:
        """The names of the queues of what the shim admits."""
        return (*self.http_queues, HTTP_BULK, *self.heavy_queues, HEAVY_BULK)

    @property
    def queues(self) -> tuple[Queue, ...]:
        """All queues, besides those of single producers."""
        return (*map(admitted_queue, self.admitted_queues), *_OTHER_QUEUES)

    @property
    def not_separated(self) -> tuple[Queue, ...]:
        """The same as `ingest topology apply` finds them: producers share two, which are bound to asg.submissions."""
        return tuple(
            msgspec.structs.replace(queue, exchange=SUBMISSIONS) if queue.exchange == UNMATCHED else queue
            for queue in self.queues
        )

    @property
    def ingest_queues(self) -> tuple[str, ...]:
        """The names of the queues that workers consume, besides those of single producers."""
        return tuple(queue.name for queue in self.queues if queue.dead_letter_exchange is not None)

    @property
    def surplus(self) -> tuple[tuple[str, ...], ...]:
        """The names that further queues of the classes can have, for each class in the order of their numbers."""
        return (
            tuple(f"{HTTP_PREFIX}{number}" for number in range(self.http, MAX_QUEUES)),
            tuple(f"{HEAVY_PREFIX}{number}" for number in range(self.heavy, MAX_QUEUES)),
        )


_OTHER_QUEUES = (
    Queue(INGEST_TASKS, UNMATCHED, "task.submitted.*", DELIVERY_LIMIT, DEAD),
    Queue(INGEST_BATCHES, UNMATCHED, "batch.submitted.*", DELIVERY_LIMIT, DEAD),
    Queue(CONSENSUS_TASKS, EVENTS, "task.accepted.#", NO_LIMIT),
    Queue(WEBHOOK_DISPATCH, EVENTS, "*.accepted.#.webhook", NO_LIMIT),
    Queue(INGEST_DEAD, DEAD, "#", NO_LIMIT),
    *(Queue(f"{name}{PARKED_SUFFIX}", PARKED, name, NO_LIMIT) for name in (CONSENSUS_TASKS, WEBHOOK_DISPATCH)),
)
OBSOLETE_BINDINGS = (Queue(WEBHOOK_DISPATCH, EVENTS, "#.webhook", NO_LIMIT),)
"""Bindings of earlier versions, which are removed. This one also took the reports to a customer named `webhook`."""
DEFAULT = Layout()
QUEUES = DEFAULT.queues
INGEST_QUEUES = DEFAULT.ingest_queues
ADMITTED_QUEUES = DEFAULT.admitted_queues
BULK_QUEUES = (HTTP_BULK, HEAVY_BULK, INGEST_BATCHES)
"""Those whose messages may be large, so that few may be in flight."""
FOR_CONSUMERS = (CONSENSUS_TASKS, WEBHOOK_DISPATCH)
"""Queues of events, for the consumers downstream."""
EVENT_QUEUES = (*FOR_CONSUMERS, *[f"{name}{PARKED_SUFFIX}" for name in FOR_CONSUMERS])
"""The same, with those of the events that the consumers have parked."""


def routes(exchange: str, routing_key: str) -> list[str]:
    """Return the names of the queues that a message is routed to, if no producer has queues of its own."""
    names = [queue.name for queue in QUEUES if queue.exchange == exchange and matches(queue.binding, routing_key)]
    return names if names or exchange != SUBMISSIONS else routes(UNMATCHED, routing_key)


def matches(binding: str, routing_key: str) -> bool:
    """Return whether a topic binding matches a routing key (AMQP 0-9-1: `*` is one word, `#` any number of words)."""
    return _match(binding.split("."), routing_key.split("."))


def _match(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_match(pattern[1:], words[start:]) for start in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _match(pattern[1:], words[1:])
