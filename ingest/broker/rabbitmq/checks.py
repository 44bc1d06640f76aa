"""Checks whether RabbitMQ can keep the service's guarantees: version, topology, policies, nodes."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ingest.broker.rabbitmq.broker import BrokerInfo, RabbitBroker
from ingest.broker.rabbitmq.management import Management, unmet
from ingest.broker.rabbitmq.permissions import permissions
from ingest.broker.rabbitmq.service_users import service_users
from ingest.broker.rabbitmq.versions import parse
from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.findings import Finding, error, ok, warning

AREA: Final = "broker"
_OLDEST: Final = (3, 10)
_APPLY: Final = "run `ingest topology apply`"
_LOSES: Final = {
    "message-ttl": "a message that waits longer is dropped or dead-lettered",
    "expires": "the queue is deleted when it is unused",
}
_SLOW_HEARTBEAT: Final = 30


async def findings(
    broker: RabbitBroker, management: Management | None, trusted: frozenset[str], outage_hold: float
) -> list[Finding]:
    """Check RabbitMQ and return all findings.

    Args:
        broker: connects as the service does.
        management: None if INGEST_MANAGEMENT_URL is not set.
        trusted: INGEST_TRUSTED_USERS, empty if it is not set.
        outage_hold: seconds for which workers hold deliveries in an outage.
    """
    try:
        info = await broker.inspect([queue.name for queue in topology.QUEUES])
    except (BrokerUnavailable, ConfigurationError) as problem:
        do = "start RabbitMQ, or correct host, user, password or virtual host in INGEST_BROKER_URL"
        return [error(AREA, str(problem), do)]
    results = [*_connection(info, str(broker))]
    if management is None:
        results += _missing(info)
        what = (
            "INGEST_MANAGEMENT_URL is not set: policies, alarms, members, permissions and the users of connected shims "
            "and workers are not checked"
        )
        return [
            *results,
            warning(AREA, what, "set it to http://user:password@host:15672, with a user that has the tag `monitoring`"),
        ]
    checks: Sequence[Callable[[], list[Finding]]] = (
        lambda: list(_topology(management, info, outage_hold)),
        lambda: list(_nodes(management)),
        lambda: list(_members(management)),
        lambda: permissions(management, broker.user, trusted),
        lambda: service_users(management, trusted),
    )
    for check in checks:
        try:
            results += await asyncio.to_thread(check)
        except (BrokerUnavailable, ConfigurationError) as problem:
            do = "correct INGEST_MANAGEMENT_URL or the tags of its user"
            results.append(warning(AREA, f"not checked: {problem}", do))
    return results


def _connection(info: BrokerInfo, where: str) -> Iterator[Finding]:
    if parse(info.version) < _OLDEST:
        yield error(AREA, f"{where} is version {info.version}", "upgrade it: 3.10 is the oldest that works")
    else:
        yield ok(AREA, f"{where}, version {info.version}")
    if info.major == 3:
        yield warning(
            AREA,
            "RabbitMQ 3 is out of support, and a direct producer can stop its queues: it crashes if a message with a "
            "forged header x-death expires",
            "upgrade to RabbitMQ 4; until then, only let producers publish whom you trust",
        )
    if not 0 < info.heartbeat <= _SLOW_HEARTBEAT:
        yield warning(
            AREA,
            f"the heartbeat is {info.heartbeat} s: it takes {(info.heartbeat + 1) * 3} s to notice a dead connection"
            if info.heartbeat
            else "there is no heartbeat: a dead connection is never noticed",
            "set INGEST_HEARTBEAT, and `heartbeat` in rabbitmq.conf, to 10",
        )
    else:
        yield ok(AREA, f"heartbeat {info.heartbeat} s")


def _missing(info: BrokerInfo) -> Iterator[Finding]:
    for name, depth in info.queues.items():
        if depth is None:
            yield error(AREA, f"queue {name} does not exist", _APPLY)


def _topology(management: Management, info: BrokerInfo, outage_hold: float) -> Iterator[Finding]:
    drift = management.drift()
    for sentence in drift:
        other_type = "of type" in sentence
        do = "move its messages, delete it, then run `ingest topology apply`" if other_type else _APPLY
        yield error(AREA, sentence, do)
    if not drift:
        yield ok(AREA, "exchanges, queue types and bindings match the topology")
    in_force = management.policies()
    arguments = {queue["name"]: queue.get("arguments") or {} for queue in management.get(f"queues/{management.vhost}")}
    for queue in topology.QUEUES:
        given = {name.removeprefix("x-"): value for name, value in arguments.get(queue.name, {}).items()}
        yield from effective_findings(queue.name, given | in_force.of(queue.name), info.major, outage_hold)
    if not any("consumer-timeout" in in_force.of(queue.name) for queue in topology.QUEUES):
        yield ok(
            AREA,
            f"no policy sets consumer-timeout; the broker's own consumer_timeout (30 min by default, not visible from "
            f"here) must be above INGEST_OUTAGE_HOLD, {outage_hold:.0f} s",
        )


def effective_findings(queue: str, effective: dict[str, Any], major: int, outage_hold: float) -> Iterator[Finding]:
    """Findings about one queue on RabbitMQ `major`; `effective` are its arguments and policies together."""
    yield from _policy(queue, effective, major)
    yield from _timeout(queue, effective, outage_hold)


def _policy(queue: str, effective: dict[str, Any], major: int) -> Iterator[Finding]:
    wrong = unmet(queue, effective)
    limit = wrong.pop("delivery-limit", None)
    for name, value in wrong.items():
        yield error(
            AREA,
            f"{queue}: policy {name} is {effective.get(name)}, it must be {value}: dead letters can be lost",
            _APPLY,
        )
    has = effective.get("delivery-limit")
    if limit is not None and queue == topology.INGEST_DEAD and (has is not None or major >= 4):
        yield error(
            AREA, f"{queue}: delivery-limit is {has or 20}: a dead letter that is read so often is dropped", _APPLY
        )
    elif limit is not None and queue in topology.FOR_CONSUMERS:
        if has is not None or major >= 4:
            yield error(
                AREA,
                f"{queue}: delivery-limit is {has or 20}: an event that its consumer returns more often is dropped",
                f"{_APPLY}, or add a dead-letter-exchange to the policy that limits it",
            )
    elif limit is not None and queue != topology.INGEST_DEAD:
        yield warning(AREA, f"{queue}: delivery-limit is {has or 'not set'}; tested with {limit}", _APPLY)
    for name, consequence in _LOSES.items():
        if name in effective:
            do = "remove it from the policy or the queue"
            yield error(AREA, f"{queue} has {name} {effective[name]}: {consequence}", do)
    if {"max-length", "max-length-bytes"} & effective.keys() and effective.get("overflow") != "reject-publish":
        yield error(AREA, f"{queue} has a maximum length and drops its oldest messages", "set overflow reject-publish")
    if not wrong and limit is None:
        yield ok(AREA, f"{queue}: the policies are correct")


def _timeout(queue: str, effective: dict[str, Any], outage_hold: float) -> Iterator[Finding]:
    timeout = effective.get("consumer-timeout")
    if isinstance(timeout, int) and timeout / 1000 <= outage_hold:
        yield error(
            AREA,
            f"{queue}: consumer-timeout is {timeout / 1000:.0f} s, workers hold up to {outage_hold:.0f} s in an outage",
            "raise consumer-timeout, or lower INGEST_OUTAGE_HOLD",
        )


def _nodes(management: Management) -> Iterator[Finding]:
    nodes = management.get("nodes")
    for node in nodes:
        name = node["name"]
        if not node.get("running"):
            yield error(AREA, f"node {name} is down", "start it")
        if node.get("mem_alarm"):
            yield error(
                AREA,
                f"node {name} is out of memory: publishers are blocked",
                "consume, add memory, or raise vm_memory_high_watermark",
            )
        if node.get("disk_free_alarm"):
            yield error(
                AREA,
                f"node {name} is out of disk: publishers are blocked",
                "free disk space: queues store their messages there",
            )
        if node.get("partitions"):
            yield error(
                AREA, f"node {name} sees a partition: {node['partitions']}", "repair the network, then restart the node"
            )
        free, least = node.get("disk_free"), node.get("disk_free_limit")
        if isinstance(free, int) and isinstance(least, int) and least < free < 2 * least:
            yield warning(
                AREA,
                f"node {name} has {free // 2**20:,} MiB of disk left; it blocks at {least // 2**20:,} MiB",
                "free disk space",
            )
    up = [node for node in nodes if node.get("running")]
    if not any(node.get("mem_alarm") or node.get("disk_free_alarm") for node in nodes):
        yield ok(AREA, "no memory or disk alarm")
    if len(up) < 3:
        which = "one RabbitMQ node: if it" if len(up) == 1 else f"{len(up)} RabbitMQ nodes: if one"
        yield warning(
            AREA, f"only {which} stops, every queue is unavailable", "run three nodes, so that queues survive one"
        )


def _members(management: Management) -> Iterator[Finding]:
    nodes = len(management.get("nodes"))
    names = {queue.name for queue in topology.QUEUES}
    small = []
    for queue in management.get(f"queues/{management.vhost}"):
        name = queue["name"]
        if name not in names or queue.get("type") != "quorum":
            continue
        members, online = queue.get("members") or [], queue.get("online") or []
        if len(online) * 2 <= len(members) or not queue.get("leader"):
            yield error(
                AREA,
                f"{name} has no majority: {len(online)} of {len(members)} members are up",
                "start the other nodes; until then the queue takes no messages",
            )
        elif len(online) < len(members):
            yield warning(AREA, f"{name}: {len(online)} of {len(members)} members are up", "start the other nodes")
        if len(members) < min(nodes, 3):
            small.append(f"{name} ({len(members)})")
    if small:
        yield warning(
            AREA,
            f"fewer members than nodes: {', '.join(small)}",
            "run `rabbitmq-queues grow NODE all` for each node that was added later",
        )
