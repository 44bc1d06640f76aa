"""What the tests want to know of the embedded broker."""

from ingest.broker.embedded.broker import EmbeddedBroker


async def depth(broker: EmbeddedBroker, queue: str) -> int:
    """The number of messages in a queue, including delivered ones."""
    ready, unacked = (await broker.dead_letters().depths())[queue]
    return ready + unacked
