"""Inspection of the embedded broker's queues."""

from ingest.broker.embedded.broker import EmbeddedBroker


async def depth(broker: EmbeddedBroker, *queues: str) -> int:
    """Return the number of messages in queues, including unacknowledged ones."""
    depths = await broker.dead_letters().depths()
    return sum(sum(depths[queue]) for queue in queues)
