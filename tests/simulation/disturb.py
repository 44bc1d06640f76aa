"""Makes the faults of a schedule happen."""

from typing import TYPE_CHECKING

import msgspec

from tests.simulation.bodies import WEBHOOK, batch_id, task_id
from tests.simulation.customers import CUSTOMERS
from tests.simulation.machines import Server
from tests.simulation.queues import FEEDBACK
from tests.simulation.schedule import (
    Backlog,
    Crash,
    Doubt,
    Expired,
    Fault,
    FullQueue,
    LostConnection,
    LostMessages,
    LostRecord,
    MissingBindings,
    MissingCustomer,
    Outage,
    Pause,
    SetQuota,
    SetWebhook,
    Stop,
)

if TYPE_CHECKING:
    from tests.simulation.world import World


def disturb(world: "World", fault: Fault) -> None:
    """Let a fault begin now."""
    match fault:
        case Crash(process=name, seconds=seconds):
            world.processes[name].crash(seconds)
        case Stop(process=name, seconds=seconds):
            world.processes[name].stop(seconds)
        case Pause(process=name, seconds=seconds):
            world.processes[name].pause(seconds)
        case LostConnection(process=name):
            for consumer in world.consumers[name].consumers:
                consumer.lose_connection()
        case SetQuota() | SetWebhook() | MissingCustomer():
            _change_customer(world, fault)
        case _:
            _disturb_server(world, fault)


def _disturb_server(world: "World", fault: Fault) -> None:
    now = world.loop.time()
    match fault:
        case Outage(server=server, seconds=seconds, process=name):
            faults = world.network.outages if name is None else world.processes[name].outages
            faults[Server[server.upper()]] = now + seconds
        case Doubt(server=server, seconds=seconds, process=name):
            faults = world.network.doubts if name is None else world.processes[name].doubts
            faults[Server[server.upper()]] = now + seconds
        case LostRecord(customer=customer, key=key):
            for id_ in (task_id(customer, key), batch_id(customer, key)):
                world.store.lose(id_)
        case _:
            _disturb_queue(world, fault)


def _disturb_queue(world: "World", fault: Fault) -> None:
    now = world.loop.time()
    match fault:
        case FullQueue(queue=queue, seconds=seconds):
            world.broker.queues[queue].full_until = now + seconds
        case LostMessages(queue=queue, seconds=seconds):
            world.broker.queues[queue].loses_until = now + seconds
        case Backlog(queue=queue, seconds=seconds):
            world.broker.queues[queue].hold_back(seconds)
        case Expired(queue=queue):
            world.broker.queues[queue].expire()
        case MissingBindings(exchange=exchange, seconds=seconds):
            for state in world.broker.queues.values():
                if state.definition.exchange == exchange and state.definition.name != FEEDBACK:
                    state.unbound_until = now + seconds


def _change_customer(world: "World", change: SetQuota | SetWebhook | MissingCustomer) -> None:
    store = world.store
    customer = store.customers.get(change.customer)
    if isinstance(change, MissingCustomer):
        store.change_customer(change.customer, None)
        created = customer or CUSTOMERS[change.customer]
        world.network.later(change.seconds, lambda: store.change_customer(change.customer, created))
    elif customer is not None:
        replace = msgspec.structs.replace
        if isinstance(change, SetQuota):
            customer = replace(customer, monthly_quota=change.quota)
        else:
            customer = replace(customer, webhooks=frozenset({WEBHOOK} if change.registered else ()))
        store.change_customer(change.customer, customer)
