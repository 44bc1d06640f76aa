"""How RabbitMQ is doing: from the management API, or as much as AMQP tells without it."""

import asyncio
import time
from typing import Any

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.overview import BrokerState, QueueState

_NAMES = [queue.name for queue in topology.QUEUES]


async def broker_state(broker: RabbitBroker, management: Management | None) -> BrokerState:
    """Never raises for what is away: that is what it tells.

    Depths and consumers come from AMQP: they are of now, while the management API's are some seconds old.
    """
    try:
        info = await broker.inspect(_NAMES)
    except (BrokerUnavailable, ConfigurationError) as error:
        return BrokerState(name="RabbitMQ", problems=[str(error)])
    problems = [f"queue {name} does not exist" for name, depth in info.queues.items() if depth is None]
    statistics: dict[str, dict[str, Any]] = {}
    if management is not None:
        try:
            statistics, alarms = await asyncio.to_thread(_statistics, management)
            problems += alarms
        except (BrokerUnavailable, ConfigurationError) as error:
            problems.append(str(error))
    queues = [_queue(name, depth, statistics.get(name, {})) for name, depth in info.queues.items() if depth is not None]
    return BrokerState(name=str(broker), version=info.version, queues=queues, problems=problems)


def _statistics(management: Management) -> tuple[dict[str, dict[str, Any]], list[str]]:
    queues = {each["name"]: each for each in management.get(f"queues/{management.vhost}")}
    alarms = []
    for node in management.get("nodes"):
        named = {"mem_alarm": "is out of memory", "disk_free_alarm": "is out of disk"}
        alarms += [
            f"node {node['name']} {text}: publishers are blocked" for key, text in named.items() if node.get(key)
        ]
        if not node.get("running"):
            alarms.append(f"node {node['name']} is down")
    return queues, alarms


def _queue(name: str, depth: tuple[int, int], seen: dict[str, Any]) -> QueueState:
    head = seen.get("head_message_timestamp")
    return QueueState(
        name=name,
        ready=depth[0],
        unacked=seen.get("messages_unacknowledged"),
        consumers=depth[1],
        rate_in=_rate(seen, "publish"),
        rate_out=_rate(seen, "ack"),
        oldest=0.0 if not depth[0] else time.time() - head if isinstance(head, int) else None,
    )


def _rate(seen: dict[str, Any], what: str) -> float | None:
    if not seen:
        return None
    rate = (seen.get("message_stats") or {}).get(f"{what}_details", {}).get("rate", 0.0)
    return float(rate)
