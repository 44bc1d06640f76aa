"""Checks the permissions of AMQP users: enough for the service, and no more than needed for all others."""

import re
import shlex
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.patterns import NOTHING, may, only
from ingest.broker.rabbitmq.producer_limits import producer_limits
from ingest.broker.rabbitmq.producer_users import OWN_TOPICS
from ingest.domain import topology
from ingest.domain.addresses import routing_key
from ingest.domain.findings import Finding, Severity, error, ok, warning
from ingest.domain.identity import SubmissionKind

AREA: Final = "permissions"
_OTHER: Final = "ingest-doctor-other-customer"
_FEEDBACK: Final = topology.feedback_queue(_OTHER).name
_OURS: Final = (*topology.INGEST_QUEUES, f"{topology.OWN_PREFIX}customer.tasks", topology.INGEST_DEAD, _FEEDBACK)
_NEEDED: Final = (*topology.EXCHANGES, *[queue.name for queue in topology.QUEUES], _FEEDBACK)
_ENOUGH: Final = "^(asg|ingest|consensus|webhook|feedback)[.]"
_FORBIDDEN: Final = {
    "configure": ((*topology.EXCHANGES, *_OURS), "delete or change the service's topology"),
    "write": ((topology.EVENTS, topology.DEAD, *_OURS, "amq.default"), "bypass the checks, or forge events"),
    "read": ((*topology.EXCHANGES, *_OURS), "read, and remove, what customers submit"),
}
"""What no user except the service's may do, by kind of permission."""


def permissions(management: Management, user: str, trusted: frozenset[str]) -> list[Finding]:
    """Check the permissions of all users and return the findings.

    If the user is not the service's, other users are not checked, because the service's would be among them.

    Args:
        management: its user needs the tag `administrator` for this check.
        user: the user of INGEST_BROKER_URL.
        trusted: further users of the service.

    Raises:
        BrokerUnavailable: the management API does not answer.
        ConfigurationError: its user lacks the tag.
    """
    vhost = unquote(management.vhost)
    rows = [row for row in management.get("permissions") if row["vhost"] == vhost]
    topics = [topic for topic in management.get("topic-permissions") if topic["vhost"] == vhost]
    tags = {account["name"]: _tags(account["tags"]) for account in management.get("users")}
    own = next((row for row in rows if row["user"] == user), None)
    if lacking := _lacking(user, own, vhost):
        return [lacking]
    others = [row for row in rows if row["user"] not in trusted | {user}]
    findings = [*_guest(user)]
    for row in others:
        submits = [topic for topic in topics if _is_about(topic, row["user"])]
        findings += _other_user(row, submits, tags.get(row["user"], set()))
    if all(finding.severity is Severity.OK for finding in findings):
        findings.append(ok(AREA, f"the permissions of {len(others)} other users are narrow enough"))
    producers = [
        row["user"]
        for row in others
        if may(row["write"], topology.SUBMISSIONS) and "administrator" not in tags.get(row["user"], ())
    ]
    findings += producer_limits(producers, management.get("user-limits"))
    if administrators := sorted(row["user"] for row in others if "administrator" in tags.get(row["user"], ())):
        # Every RabbitMQ has one. Its permissions do not matter: it can change them.
        findings.append(ok(AREA, f"administrators, who can act in any name: {', '.join(administrators)}"))
    return findings


def _lacking(user: str, row: dict[str, Any] | None, vhost: str) -> Finding | None:
    """Return the finding for a user that lacks what the service needs; None if it has everything."""
    lacking = {
        kind: [name for name in _NEEDED if row is None or not may(row[kind], name)]
        for kind in ("configure", "write", "read")
    }
    if not any(lacking.values()):
        return None
    shown = "; ".join(f"{kind} {', '.join(names)}" for kind, names in lacking.items() if names)
    return error(
        AREA,
        f"user {user} of INGEST_BROKER_URL may not {shown}. Other users are not checked",
        f"connect as the service's user. Only if {user} is that user: "
        + _set_permissions(vhost, user, _ENOUGH, _ENOUGH, _ENOUGH),
    )


def _guest(user: str) -> Iterator[Finding]:
    if user == "guest":
        yield warning(
            AREA,
            "the service's user is guest, whose password is public",
            "create a user for the service: deploy/README.md, Users",
        )


def _other_user(row: dict[str, Any], topics: list[dict[str, Any]], tags: set[str]) -> Iterator[Finding]:
    user = row["user"]
    if "impersonator" in tags or ("administrator" in tags and topics):
        named = ", ".join(sorted(tags & {"administrator", "impersonator"}))
        do = "give this tag to people, not to programs"
        yield warning(AREA, f"user {user} has the tag {named}: it can act in any name", do)
        return
    if "administrator" in tags:
        return
    for kind, (names, consequence) in _FORBIDDEN.items():
        if allowed := [name for name in names if may(row[kind], name)]:
            what = f"user {user} may {kind} {', '.join(allowed)}: it can {consequence}"
            yield error(AREA, what, _narrower(row))
    yield from _submissions(row, topics)


def _narrower(row: dict[str, Any]) -> str:
    """Return the command that takes from a user what only the service needs, and leaves the rest."""
    submits = may(row["write"], topology.SUBMISSIONS)
    own = topology.feedback_queue(row["user"]).name if submits else ""
    readable = (own,) if submits else topology.EVENT_QUEUES
    writable = topology.SUBMISSIONS if submits else topology.PARKED
    narrow = {
        "configure": NOTHING,
        "write": only(*[name for name in [writable] if may(row["write"], name)]),
        "read": only(*[name for name in readable if may(row["read"], name)]),
    }
    kept = [
        narrow[kind] if any(may(row[kind], name) for name in names) else row[kind]
        for kind, (names, _) in _FORBIDDEN.items()
    ]
    command = _set_permissions(row["vhost"], row["user"], *kept)
    return f"{command} (if it has other queues, add them to the patterns)"


def _submissions(row: dict[str, Any], topics: list[dict[str, Any]]) -> Iterator[Finding]:
    user = row["user"]
    if not may(row["write"], topology.SUBMISSIONS):
        return
    if not topics or any(_may_submit(topic, user, _OTHER) for topic in topics):
        yield error(AREA, f"user {user} may submit for any customer", _own_topics(row))
    elif any(_may_use_shim_queues(topic, user) for topic in topics):
        yield error(AREA, f"user {user} may publish to the queues of the shim, which is rejected", _own_topics(row))
    elif any(_may_submit(topic, user, f"{user}\n") for topic in topics):
        yield warning(AREA, f"user {user} may submit with a routing key that ends with a line break", _own_topics(row))
    elif not any(_may_submit(topic, user, user) for topic in topics):
        yield error(
            AREA,
            f"user {user} may submit, but not for a customer of its own name: what it claims to be admitted is kept",
            "name the user of a producer as its cust_id: deploy/README.md, Users",
        )


def _own_topics(row: dict[str, Any]) -> str:
    """Return the command that lets a producer submit as itself only."""
    user, option = shlex.quote(row["user"]), _vhost_option(row["vhost"])
    return f"rabbitmqctl set_topic_permissions{option} {user} {topology.SUBMISSIONS} '{OWN_TOPICS}' '{NOTHING}'"


def _is_about(topic: dict[str, Any], user: str) -> bool:
    return (topic["user"], topic["exchange"]) == (user, topology.SUBMISSIONS)


def _may_submit(topic: dict[str, Any], user: str, cust_id: str, route: str = "") -> bool:
    pattern = topic["write"].replace("{username}", re.escape(user)).replace("{vhost}", re.escape(topic["vhost"]))
    return any(may(pattern, routing_key(kind, cust_id, route)) for kind in SubmissionKind)


def _may_use_shim_queues(topic: dict[str, Any], user: str) -> bool:
    return any(_may_submit(topic, user, user, topology.route_to(queue)) for queue in topology.ADMITTED_QUEUES)


def _set_permissions(vhost: str, user: str, *patterns: str) -> str:
    quoted = " ".join(shlex.quote(pattern) for pattern in patterns)
    return f"rabbitmqctl set_permissions{_vhost_option(vhost)} {shlex.quote(user)} {quoted}"


def _vhost_option(vhost: str) -> str:
    return "" if vhost == "/" else f" -p {shlex.quote(vhost)}"


def _tags(tags: str | list[str]) -> set[str]:
    return set(tags.split(",") if isinstance(tags, str) else tags)
