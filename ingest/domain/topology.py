"""The AMQP topology, as frozen data. What exists on a broker is made from it, checked against it, exported from it."""

import msgspec

SUBMISSIONS = "asg.submissions"
EVENTS = "asg.events"
DEAD = "asg.dead"

INGEST_TASKS = "ingest.tasks"
INGEST_BATCHES = "ingest.batches"
CONSENSUS_TASKS = "consensus.tasks"
WEBHOOK_DISPATCH = "webhook.dispatch"
INGEST_DEAD = "ingest.dead"

DELIVERY_LIMIT = 20
"""Deliveries of one submission that may fail, as many as RabbitMQ 4's default. Up to 4.2 every return counts, also
each connection that breaks in an outage: few enough to be rid of what kills workers, enough for an outage."""
NO_LIMIT = 2**31 - 1
"""Of deliveries, in effect. RabbitMQ 4 drops a message after 20 where no policy says otherwise, which must not befall
dead letters that are looked at, nor events whose consumer fails on them; its -1 is refused by 3.x."""


class Queue(msgspec.Struct, frozen=True):
    """A quorum queue bound to one topic exchange."""

    name: str
    exchange: str
    binding: str
    delivery_limit: int
    dead_letter_exchange: str | None = None


EXCHANGES = (SUBMISSIONS, EVENTS, DEAD)

QUEUES = (
    Queue(INGEST_TASKS, SUBMISSIONS, "task.submitted.*", DELIVERY_LIMIT, DEAD),
    Queue(INGEST_BATCHES, SUBMISSIONS, "batch.submitted.*", DELIVERY_LIMIT, DEAD),
    Queue(CONSENSUS_TASKS, EVENTS, "task.accepted.#", NO_LIMIT),
    Queue(WEBHOOK_DISPATCH, EVENTS, "#.webhook", NO_LIMIT),
    Queue(INGEST_DEAD, DEAD, "#", NO_LIMIT),
)

FOR_CONSUMERS = (CONSENSUS_TASKS, WEBHOOK_DISPATCH)
"""Queues of events, which others consume."""


def matches(binding: str, routing_key: str) -> bool:
    """Whether a topic binding matches a routing key (AMQP 0-9-1: `*` is one word, `#` any number of words)."""
    return _match(binding.split("."), routing_key.split("."))


def _match(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_match(pattern[1:], words[start:]) for start in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _match(pattern[1:], words[1:])
