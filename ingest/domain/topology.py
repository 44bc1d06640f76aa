"""The AMQP topology as data. It is declared on the broker, compared with the broker, and exported, from here."""

from typing import Any

import msgspec

SUBMISSIONS = "asg.submissions"
EVENTS = "asg.events"
DEAD = "asg.dead"
UNMATCHED = "asg.unmatched"
"""The alternate exchange of asg.submissions: it gets what no binding there matches."""

INGEST_HTTP = ("ingest.http.0", "ingest.http.1")
"""Several, so that their leaders can be on different nodes of RabbitMQ."""
INGEST_HEAVY = ("ingest.heavy.0",)
HTTP_BULK = "ingest.http.bulk"
"""For submissions with many bytes: RabbitMQ limits what it sends to a consumer only by messages."""
HEAVY_BULK = "ingest.heavy.bulk"
"""The same, of heavy customers."""
ADMITTED_QUEUES = (*INGEST_HTTP, HTTP_BULK, *INGEST_HEAVY, HEAVY_BULK)
"""The queues of what the shim admits."""
INGEST_TASKS = "ingest.tasks"
"""For direct producers that have no queues of their own."""
INGEST_BATCHES = "ingest.batches"
"""The same, for batches."""
OWN_PREFIX = "ingest.direct."
"""The names of queues that belong to single direct producers begin with this."""
CONSENSUS_TASKS = "consensus.tasks"
WEBHOOK_DISPATCH = "webhook.dispatch"
INGEST_DEAD = "ingest.dead"

DELIVERY_LIMIT = 20
"""How often the delivery of one submission may fail; it is RabbitMQ 4's default. Up to RabbitMQ 4.2 every return
counts, also when a connection breaks. 20 is low enough to remove a submission that crashes workers, and enough for an
outage.
"""
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
    service, _, rest = queue.partition(".")
    traffic_class, separator, _ = rest.partition(".")
    return f"{service}.{traffic_class}.*" if separator else queue


def _admitted_queue(name: str) -> Queue:
    return Queue(name, SUBMISSIONS, f"{route_to(name)}.#", DELIVERY_LIMIT, DEAD, balanced=True)


def own_queues(cust_id: str) -> tuple[Queue, Queue]:
    """Return the queues of a direct producer that has some of its own: for tasks, and for batches."""
    return (
        Queue(f"{OWN_PREFIX}{cust_id}.tasks", SUBMISSIONS, f"task.submitted.{cust_id}", DELIVERY_LIMIT, DEAD, True),
        Queue(f"{OWN_PREFIX}{cust_id}.batches", SUBMISSIONS, f"batch.submitted.{cust_id}", DELIVERY_LIMIT, DEAD, True),
    )


def label_of(queue: str) -> str:
    """Return the name of a queue in metrics. The queues of all producers have the same, because no label has an id."""
    return class_of(queue) if queue.startswith(OWN_PREFIX) else queue


EXCHANGES = (SUBMISSIONS, EVENTS, DEAD, UNMATCHED)

QUEUES = (
    *[_admitted_queue(name) for name in ADMITTED_QUEUES],
    Queue(INGEST_TASKS, UNMATCHED, "task.submitted.*", DELIVERY_LIMIT, DEAD),
    Queue(INGEST_BATCHES, UNMATCHED, "batch.submitted.*", DELIVERY_LIMIT, DEAD),
    Queue(CONSENSUS_TASKS, EVENTS, "task.accepted.#", NO_LIMIT),
    Queue(WEBHOOK_DISPATCH, EVENTS, "#.webhook", NO_LIMIT),
    Queue(INGEST_DEAD, DEAD, "#", NO_LIMIT),
)

NOT_SEPARATED = tuple(
    msgspec.structs.replace(queue, exchange=SUBMISSIONS) if queue.exchange == UNMATCHED else queue for queue in QUEUES
)
"""The queues as `ingest topology apply` finds them: all producers share two, which are bound to asg.submissions."""
INGEST_QUEUES = tuple(queue.name for queue in QUEUES if queue.dead_letter_exchange is not None)
"""The queues that workers consume, besides those of single producers."""
BULK_QUEUES = (HTTP_BULK, HEAVY_BULK, INGEST_BATCHES)
"""Those whose messages may be large, so that few may be in flight."""
FOR_CONSUMERS = (CONSENSUS_TASKS, WEBHOOK_DISPATCH)
"""Queues of events, for the consumers downstream."""


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
