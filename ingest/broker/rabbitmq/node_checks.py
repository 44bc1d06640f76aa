"""Checks of RabbitMQ's nodes and their alarms, and of the members of the queues."""

from collections.abc import Iterator
from typing import Final

from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.findings import Finding, error, ok, warning

_AREA: Final = "broker"


def nodes_and_alarms(management: Management) -> Iterator[Finding]:
    """Findings about nodes, alarms, free disk and partitions. Raises as `Management.get`."""
    nodes = management.get("nodes")
    for node in nodes:
        name = node["name"]
        if not node.get("running"):
            yield error(_AREA, f"node {name} is down", "start it")
        if node.get("mem_alarm"):
            yield error(
                _AREA,
                f"node {name} is out of memory: publishers are blocked",
                "consume, add memory, or raise vm_memory_high_watermark",
            )
        if node.get("disk_free_alarm"):
            yield error(
                _AREA,
                f"node {name} is out of disk: publishers are blocked",
                "free disk space: queues store their messages there",
            )
        if node.get("partitions"):
            yield error(
                _AREA,
                f"node {name} sees a partition: {node['partitions']}",
                "repair the network, then restart the node",
            )
        free, least = node.get("disk_free"), node.get("disk_free_limit")
        if isinstance(free, int) and isinstance(least, int) and least < free < 2 * least:
            yield warning(
                _AREA,
                f"node {name} has {free // 2**20:,} MiB of disk left; it blocks at {least // 2**20:,} MiB",
                "free disk space",
            )
    up = [node for node in nodes if node.get("running")]
    if not any(node.get("mem_alarm") or node.get("disk_free_alarm") for node in nodes):
        yield ok(_AREA, "no memory or disk alarm")
    if len(up) < 3:
        which = "one RabbitMQ node: if it" if len(up) == 1 else f"{len(up)} RabbitMQ nodes: if one"
        yield warning(
            _AREA, f"only {which} stops, every queue is unavailable", "run three nodes, so that queues survive one"
        )


def members(management: Management) -> Iterator[Finding]:
    """Findings about the members of the queues. Raises as `Management.get`."""
    nodes = len(management.get("nodes"))
    names = {queue.name for queue in management.layout.queues}
    small = []
    for queue in management.queues().values():
        name = queue["name"]
        if (name not in names and not name.startswith(topology.OWN_PREFIX)) or queue.get("type") != "quorum":
            continue
        members, online = queue.get("members") or [], queue.get("online") or []
        if len(online) * 2 <= len(members) or not queue.get("leader"):
            yield error(
                _AREA,
                f"{name} has no majority: {len(online)} of {len(members)} members are up",
                "start the other nodes; until then the queue takes no messages",
            )
        elif len(online) < len(members):
            yield warning(_AREA, f"{name}: {len(online)} of {len(members)} members are up", "start the other nodes")
        if len(members) < min(nodes, 3):
            small.append(f"{name} ({len(members)})")
    if small:
        yield warning(
            _AREA,
            f"fewer members than nodes: {', '.join(small)}",
            "run `rabbitmq-queues grow NODE all` for each node that was added later",
        )
