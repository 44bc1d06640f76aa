"""Changes of the topology that need both AMQP and the management API."""

import asyncio
import time
from typing import Final

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.overview import counted

_SHARED: Final = [queue for queue in topology.NOT_SEPARATED if queue not in topology.QUEUES]
"""The shared queues of producers, with their bindings to asg.submissions."""
_POLL: Final = 0.5
_STALE: Final = 12.0
"""Seconds after which the statistics of the management API, which are up to 5 s old, show what was routed before."""
_CONSUMERS_LEAVE: Final = 60.0
"""Seconds in which workers must leave a queue of a producer that was removed from the store."""


async def apply_topology(broker: RabbitBroker, management: Management) -> None:
    """Declare the topology, set the policies, and separate the queues of single producers from the shared ones.

    At every moment, a submission is routed to at least one queue.

    Raises:
        BrokerUnavailable, ConfigurationError: as `Broker.declare` and `Management.apply_policies`.
    """
    await broker.declare_separated()
    await asyncio.to_thread(management.apply_policies)
    await broker.unbind(_SHARED)


async def declare_own_queues(broker: RabbitBroker, management: Management, cust_id: str) -> None:
    """Create the queues of a producer. Nothing is routed there before `bind_own_queues`.

    Raises:
        ConfigurationError: the topology must be applied first. Also as `apply_topology`.
    """
    if differences := await asyncio.to_thread(management.differences):
        raise ConfigurationError(f"{differences[0]}: run `ingest topology apply` first")
    await broker.declare_queues(topology.own_queues(cust_id))


async def bind_own_queues(broker: RabbitBroker, cust_id: str) -> None:
    """Route what a producer publishes to its own queues. Raises as `apply_topology`."""
    await broker.bind(topology.own_queues(cust_id))


async def drain_own_queues(broker: RabbitBroker, management: Management, cust_id: str, seconds: float) -> None:
    """Route what a producer publishes to the shared queues, and wait until its own queues are empty.

    Raises:
        BrokerUnavailable: they are not empty after so many seconds. Also as `apply_topology`.
    """
    await broker.unbind(await existing_own_queues(broker, cust_id))
    await asyncio.sleep(_STALE)
    give_up = time.monotonic() + seconds
    while waiting := await asyncio.to_thread(_messages, management, cust_id):
        if time.monotonic() >= give_up:
            left = counted(waiting, "message")
            raise BrokerUnavailable(
                f"{left} left in the queues of {cust_id}: see that workers run, then run this again"
            )
        await asyncio.sleep(_POLL)


async def delete_own_queues(broker: RabbitBroker, cust_id: str) -> None:
    """Delete the drained queues of a producer, once no worker consumes them. Raises as `apply_topology`."""
    names = [queue.name for queue in topology.own_queues(cust_id)]
    give_up = time.monotonic() + _CONSUMERS_LEAVE
    while time.monotonic() < give_up:
        depths = (await broker.inspect(names)).queues.values()
        if not any(consumers for _, consumers in filter(None, depths)):
            break
        await asyncio.sleep(_POLL)
    await broker.delete(topology.own_queues(cust_id))


async def existing_own_queues(broker: RabbitBroker, cust_id: str) -> list[topology.Queue]:
    """Return those of the producer's queues that exist. Raises as `apply_topology`."""
    queues = topology.own_queues(cust_id)
    depths = (await broker.inspect([queue.name for queue in queues])).queues
    return [queue for queue in queues if depths[queue.name] is not None]


def _messages(management: Management, cust_id: str) -> int:
    """Return how many messages the queues have, with those that are delivered and not acknowledged."""
    names = {queue.name for queue in topology.own_queues(cust_id)}
    queues = management.get(f"queues/{management.vhost}")
    return sum(int(queue.get("messages", 0)) for queue in queues if queue["name"] in names)
