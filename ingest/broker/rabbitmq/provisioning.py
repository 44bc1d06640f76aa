"""Changes of the topology that need both AMQP and the management API. Each can be interrupted and repeated."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management, unmet
from ingest.broker.rabbitmq.status import rate
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError, IngestError
from ingest.domain.overview import counted

_SHARED: Final = [queue for queue in topology.DEFAULT.not_separated if queue not in topology.QUEUES]
"""The shared queues of producers, with their bindings to asg.submissions."""
DRAIN_TIMEOUT: Final = 600.0
"""Seconds in which queues that are to be deleted must become empty."""
_POLL: Final = 0.5
_STALE: Final = 12.0
"""Seconds after which the statistics of the management API, which are usually up to 5 s old, show what was routed
before."""
_CONSUMERS_LEAVE: Final = 90.0
"""Seconds in which workers must leave drained queues."""


async def apply_topology(broker: RabbitBroker, management: Management) -> None:
    """Declare the topology, set the policies, and move the shared queues of producers to asg.unmatched.

    At every moment, a submission is routed to at least one queue.

    Raises:
        ConfigurationError: another policy keeps asg.submissions from passing on to asg.unmatched.
        BrokerUnavailable, ConfigurationError: as `Broker.declare` and `Management.apply_policies`.
    """
    if not await asyncio.to_thread(_passes_on, management):
        await broker.declare_all(broker.layout.not_separated)
    await broker.declare_all(broker.layout.queues)
    await asyncio.to_thread(management.apply_policies)
    if not await asyncio.to_thread(_passes_on, management):
        raise ConfigurationError(
            f"another policy applies to {topology.SUBMISSIONS}: add alternate-exchange={topology.UNMATCHED} to it, or "
            "give it a lower priority"
        )
    await broker.unbind(_SHARED)


async def remove_surplus(
    broker: RabbitBroker, management: Management, names: Sequence[str], seconds: float = DRAIN_TIMEOUT
) -> None:
    """Drain and delete queues that no shim uses any more. If that fails, they are bound again.

    Raises:
        ConfigurationError: a shim still publishes to them.
        BrokerUnavailable: they are not empty after so many seconds, or workers still consume them.
        BrokerUnavailable, ConfigurationError: as `apply_topology`.
    """
    # Those with the highest numbers are deleted first: workers look for surplus queues up to the first gap.
    queues = [topology.admitted_queue(name) for name in reversed(names)]
    await _wait_until_unused(management, queues)
    try:
        await _drain(broker, management, queues, "the surplus queues", seconds)
        await _delete(broker, queues, "the surplus queues", "restart the shims, then run this again")
    except BaseException:  # also Ctrl-C: a shim with the larger number needs the bindings
        with contextlib.suppress(IngestError):
            await broker.bind(await existing_queues(broker, queues))
        raise


async def declare_producer_queues(broker: RabbitBroker, management: Management, cust_id: str) -> None:
    """Create the queues of a producer. Nothing is routed there before `bind_producer_queues`.

    Raises:
        ConfigurationError: the topology must be applied first. Also as `apply_topology`.
    """
    if obstacle := await asyncio.to_thread(_obstacle, management, cust_id):
        raise ConfigurationError(f"{obstacle}: run `ingest topology apply` first")
    await broker.declare_queues(topology.producer_queues(cust_id))


async def bind_producer_queues(broker: RabbitBroker, cust_id: str) -> None:
    """Route what a producer publishes, and the reports to it, to its queues. Raises as `apply_topology`."""
    await broker.bind(topology.producer_queues(cust_id))


async def drain_own_queues(
    broker: RabbitBroker, management: Management, cust_id: str, seconds: float = DRAIN_TIMEOUT
) -> None:
    """Route what a producer publishes to the shared queues, and wait until its own queues are empty.

    Raises:
        BrokerUnavailable: they are not empty after so many seconds. Also as `apply_topology`.
    """
    queues = await existing_queues(broker, topology.own_queues(cust_id))
    await _drain(broker, management, queues, f"the queues of {cust_id}", seconds)


async def delete_own_queues(broker: RabbitBroker, cust_id: str) -> None:
    """Delete the drained queues of a producer, once no worker consumes them and nothing is routed there.

    Raises:
        BrokerUnavailable: a worker still consumes them, or they have messages. Also as `apply_topology`.
    """
    queues = await existing_queues(broker, topology.own_queues(cust_id))
    do = f"run `ingest producer add {cust_id}`, then remove it again"
    await _delete(broker, queues, f"the queues of {cust_id}", do)


async def delete_feedback_queue(broker: RabbitBroker, cust_id: str) -> int:
    """Delete the queue of reports to a producer; return how many it had not read. Raises as `apply_topology`."""
    return await broker.delete([topology.feedback_queue(cust_id)])


async def existing_queues(broker: RabbitBroker, queues: Sequence[topology.Queue]) -> list[topology.Queue]:
    """Return those of the queues that exist. Raises as `apply_topology`."""
    depths = (await broker.inspect([queue.name for queue in queues])).queues
    return [queue for queue in queues if depths[queue.name] is not None]


def _passes_on(management: Management) -> bool:
    return management.policies().pass_on_unmatched


def _obstacle(management: Management, cust_id: str) -> str | None:
    """Return why a producer cannot have queues of its own yet, as a clause."""
    if topology.UNMATCHED not in {exchange["name"] for exchange in management.get(f"exchanges/{management.vhost}")}:
        return f"exchange {topology.UNMATCHED} is missing"
    in_force = management.policies()
    if not in_force.pass_on_unmatched:
        return f"exchange {topology.SUBMISSIONS} does not pass on to {topology.UNMATCHED}"
    for queue in _SHARED:
        bindings = management.get(f"queues/{management.vhost}/{queue.name}/bindings")
        if (queue.exchange, queue.binding) in {(bound["source"], bound["routing_key"]) for bound in bindings}:
            return f"queue {queue.name} is still bound to {queue.exchange}"
    if any(unmet(queue.name, in_force.of(queue.name)) for queue in topology.producer_queues(cust_id)):
        return "the policy of queues of single producers is not in force"
    return None


async def _wait_until_unused(management: Management, queues: Sequence[topology.Queue]) -> None:
    """Wait until the statistics show no more messages that arrived before. Raises ConfigurationError if more arrive."""
    give_up = time.monotonic() + _STALE
    while used := await asyncio.to_thread(_used, management, queues):
        if time.monotonic() >= give_up:
            raise ConfigurationError(
                f"messages arrive in {', '.join(used)}: restart all shims with the smaller number, then run this again"
            )
        await asyncio.sleep(_POLL)


def _used(management: Management, queues: Sequence[topology.Queue]) -> list[str]:
    """Return the names of queues in which messages arrive, according to the latest statistics."""
    return [queue["name"] for queue in _statistics(management, queues) if rate(queue, "publish")]


async def _drain(
    broker: RabbitBroker, management: Management, queues: Sequence[topology.Queue], what: str, seconds: float
) -> None:
    """Unbind queues, and wait until they are empty. Raises BrokerUnavailable after so many seconds."""
    await broker.unbind(queues)
    await asyncio.sleep(_STALE)
    give_up = time.monotonic() + seconds
    while waiting := await asyncio.to_thread(_messages, management, queues, what):
        if time.monotonic() >= give_up:
            left = counted(waiting, "message")
            raise BrokerUnavailable(f"{left} left in {what}: see that workers run, then run this again")
        await asyncio.sleep(_POLL)


async def _delete(broker: RabbitBroker, queues: Sequence[topology.Queue], what: str, do: str) -> None:
    """Delete drained queues, once no worker consumes them and nothing is routed there.

    `do`: what the operator does if they have messages again. Raises BrokerUnavailable.
    """
    give_up = time.monotonic() + _CONSUMERS_LEAVE
    while True:
        await broker.unbind(queues)
        depths = (await broker.inspect([queue.name for queue in queues])).queues.values()
        # Without consumers, nothing is unacknowledged, so that the depth is complete.
        if not any(consumers for _, consumers in filter(None, depths)):
            break
        if time.monotonic() >= give_up:
            raise BrokerUnavailable(f"workers still consume {what}: restart them, then run this again")
        await asyncio.sleep(_POLL)
    if waiting := sum(ready for ready, _ in filter(None, depths)):
        raise BrokerUnavailable(f"{counted(waiting, 'message')} left in {what}: {do}")
    # RabbitMQ cannot delete a quorum queue only if it is empty.
    if lost := await broker.delete(queues):
        raise ConfigurationError(f"lost {counted(lost, 'message')}, which arrived while {what} were deleted: {do}")


def _messages(management: Management, drained: Sequence[topology.Queue], what: str) -> int:
    """Return how many messages the queues have, with those that are delivered and not acknowledged."""
    queues = _statistics(management, drained)
    if any("messages" not in queue for queue in queues):
        raise BrokerUnavailable(f"the management API has no statistics of {what}: try again later")
    return sum(int(queue["messages"]) for queue in queues)


def _statistics(management: Management, queues: Sequence[topology.Queue]) -> list[dict[str, Any]]:
    existing = management.queues()
    return [existing[queue.name] for queue in queues if queue.name in existing]
