"""The state of RabbitMQ, from the management API, or without it as far as AMQP shows it."""

import asyncio
import time
from typing import Any

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.overview import BrokerState, QueueState


async def broker_state(broker: RabbitBroker, management: Management | None) -> BrokerState:
    """Return the state; an outage is part of it and raises nothing.

    Depths and consumers come from AMQP, where they are current; those of the management API are some seconds old.
    """
    statistics: dict[str, dict[str, Any]] = {}
    reported: list[str] = []
    if management is not None:
        try:
            statistics, reported = await asyncio.to_thread(_statistics, management)
        except (BrokerUnavailable, ConfigurationError) as error:
            reported = [str(error)]
    names = [queue.name for queue in broker.layout.queues]
    surplus = [name for group in broker.layout.surplus for name in group if name in statistics]
    own_queues = sorted(name for name in statistics if name.startswith(topology.OWN_PREFIX))
    try:
        info = await broker.inspect([*names, *surplus, *own_queues])
    except (BrokerUnavailable, ConfigurationError) as error:
        return BrokerState(name="RabbitMQ", problems=[str(error)])
    missing = [name for name, depth in info.queues.items() if depth is None]
    problems = [f"missing queues: {', '.join(missing)}: run `ingest topology apply`"] if missing else []
    queues = [_queue(name, depth, statistics.get(name, {})) for name, depth in info.queues.items() if depth is not None]
    return BrokerState(name=str(broker), version=info.version, queues=queues, problems=problems + reported)


def _statistics(management: Management) -> tuple[dict[str, dict[str, Any]], list[str]]:
    queues = management.queues()
    alarms = []
    for node in management.get("nodes"):
        named = {"mem_alarm": "is out of memory", "disk_free_alarm": "is out of disk"}
        alarms += [
            f"node {node['name']} {text}: publishers are blocked" for key, text in named.items() if node.get(key)
        ]
        if not node.get("running"):
            alarms.append(f"node {node['name']} is down")
    return queues, alarms


def _queue(name: str, depth: tuple[int, int], statistics: dict[str, Any]) -> QueueState:
    head = statistics.get("head_message_timestamp")  # quorum queues have none, up to RabbitMQ 4.3
    return QueueState(
        name=name,
        ready=depth[0],
        unacked=statistics.get("messages_unacknowledged"),
        consumers=depth[1],
        rate_in=rate(statistics, "publish"),
        rate_out=rate(statistics, "ack"),
        oldest=0.0 if not depth[0] else time.time() - head if isinstance(head, int) else None,
    )


def rate(statistics: dict[str, Any], counter: str) -> float | None:
    """Return messages per second of a counter of a queue, such as `publish`; None without statistics."""
    if not statistics:
        return None
    per_second = (statistics.get("message_stats") or {}).get(f"{counter}_details", {}).get("rate", 0.0)
    return float(per_second)
