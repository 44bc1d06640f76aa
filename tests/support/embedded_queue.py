"""Inspection of the embedded broker's queues."""

from ingest.broker.embedded.broker import EmbeddedBroker


async def depth(broker: EmbeddedBroker, queue: str) -> int:
    """Return the number of messages in a queue, including unacknowledged ones."""
    ready, unacked = (await broker.dead_letters().depths())[queue]
    return ready + unacked
