"""Checks whether RabbitMQ can keep the service's guarantees. Runs all checks, and says which could not be made."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from ingest.broker.rabbitmq.broker import BrokerInfo, RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.node_checks import members, nodes_and_alarms
from ingest.broker.rabbitmq.permissions import permissions
from ingest.broker.rabbitmq.service_users import service_users
from ingest.broker.rabbitmq.topology_checks import missing_queues, topology_findings
from ingest.broker.rabbitmq.versions import parse
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.findings import Finding, error, not_checked, ok, warning

AREA: Final = "broker"
_OLDEST: Final = (3, 10)
_SLOW_HEARTBEAT: Final = 30
_SERVICE_USERS: Final = "the users of connected shims and workers"
_MANAGED: Final = ("topology and policies", "nodes and alarms", "queue members", "permissions", _SERVICE_USERS)
"""What the management API is needed for."""
_NOT_CHECKED: Final = (*_MANAGED, "queues of producers")
_ADMINISTRATOR: Final = "permissions are not checked: that needs a management user with the tag `administrator`"


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
        info = await broker.inspect([queue.name for queue in broker.layout.queues])
    except BrokerUnavailable as problem:
        do = "start RabbitMQ, or correct host, user, password or virtual host in INGEST_BROKER_URL"
        return [error(AREA, f"{problem}. {not_checked(_NOT_CHECKED)}", do)]
    except ConfigurationError as problem:
        do = "set INGEST_BROKER_URL to the service's user (deploy/README.md, Users)"
        return [error(AREA, f"{problem}. {not_checked(_NOT_CHECKED)}", do)]
    results = [*_connection(info, str(broker))]
    if management is None:
        do = "set it to http://user:password@host:15672, with a user that has the tag `monitoring`"
        what = f"INGEST_MANAGEMENT_URL is not set. {not_checked(_NOT_CHECKED)}"
        return [*results, *missing_queues(info), warning(AREA, what, do)]
    checks: Sequence[Callable[[], list[Finding]]] = (
        lambda: list(topology_findings(management, info, outage_hold)),
        lambda: list(nodes_and_alarms(management)),
        lambda: list(members(management)),
        lambda: permissions(management, broker.user, trusted),
        lambda: service_users(management, trusted),
    )
    return [*results, *await asyncio.to_thread(_run, dict(zip(_MANAGED, checks, strict=True)))]


def _run(checks: Mapping[str, Callable[[], list[Finding]]]) -> list[Finding]:
    """Run the checks of the management API; list those that could not be made in one finding."""
    results: list[Finding] = []
    failed: dict[str, ConfigurationError] = {}
    for position, (name, check) in enumerate(checks.items()):
        try:
            results += check()
        except BrokerUnavailable as problem:  # it would answer the others no better
            do = "correct INGEST_MANAGEMENT_URL, or start RabbitMQ's plugin rabbitmq_management"
            return [*results, warning(AREA, f"{problem}. {not_checked([*failed, *[*checks][position:]])}", do)]
        except ConfigurationError as problem:
            failed[name] = problem
    if [*failed] == ["permissions"]:
        results.append(ok("permissions", _ADMINISTRATOR))
    elif failed:
        do = (
            "set INGEST_MANAGEMENT_URL to a user that has the tag `monitoring` and permissions in the virtual host: "
            "`monitoring` or `operator` in deploy/README.md, Users"
        )
        cause = next(iter(failed.values()))
        results.append(warning(AREA, f"{cause}. {not_checked(failed)}", do))
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
