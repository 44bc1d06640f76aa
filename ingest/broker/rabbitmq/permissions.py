"""Checks the permissions of AMQP users: enough for the service, and no more than needed for all others."""

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.errors import ConfigurationError
from ingest.domain.findings import Finding, Severity, error, ok, warning

AREA: Final = "permissions"
_OTHER: Final = "ingest-doctor-other-customer"
_OURS: Final = (topology.INGEST_TASKS, topology.INGEST_BATCHES, topology.INGEST_DEAD)
_ENOUGH: Final = "^(asg|ingest|consensus|webhook)[.].*"
_NARROW: Final = (
    "rabbitmqctl set_permissions {user} '^$' '^asg[.]submissions$' '^$', or what a consumer downstream needs"
)


def permissions(management: Management, user: str | None, trusted: frozenset[str]) -> list[Finding]:
    """Check the permissions of all users and return the findings. Raises BrokerUnavailable.

    Args:
        management: its user needs the tag `administrator` for this check.
        user: the user that the service connects as.
        trusted: further users of the service.
    """
    vhost = unquote(management.vhost)
    try:
        rows = [row for row in management.get("permissions") if row["vhost"] == vhost]
        topics = [topic for topic in management.get("topic-permissions") if topic["vhost"] == vhost]
        tags = {account["name"]: _tags(account["tags"]) for account in management.get("users")}
    except ConfigurationError as problem:
        return [ok(AREA, f"not checked, because that needs the tag `administrator`: {problem}")]
    findings = [*_service(rows, user)] if user else []
    others = [row for row in rows if row["user"] not in trusted | {user}]
    for row in others:
        own = [topic for topic in topics if topic["user"] == row["user"] and topic["exchange"] == topology.SUBMISSIONS]
        findings += _other_user(row, own, tags.get(row["user"], set()))
    if not any(finding.severity is not Severity.OK for finding in findings):
        findings.append(ok(AREA, f"the permissions of {len(others)} other users are narrow enough"))
    return findings


def _service(rows: list[dict[str, Any]], user: str) -> Iterator[Finding]:
    row = next((row for row in rows if row["user"] == user), None)
    queues = [queue.name for queue in topology.QUEUES]
    needed = {"configure": [*topology.EXCHANGES, *queues], "write": [*topology.EXCHANGES, *queues]}
    needed["read"] = needed["write"]
    for kind, names in needed.items():
        if lacking := [name for name in names if row is None or not _may(row[kind], name)]:
            yield error(
                AREA,
                f"user {user} may not {kind} {', '.join(lacking)}",
                f"rabbitmqctl set_permissions {user} '{_ENOUGH}' '{_ENOUGH}' '{_ENOUGH}'",
            )
    if user == "guest":
        yield warning(
            AREA,
            "the service's user is guest, whose password is public",
            "create a user for the service: deploy/README.md, Users",
        )


def _other_user(row: dict[str, Any], topics: list[dict[str, Any]], tags: set[str]) -> Iterator[Finding]:
    user = row["user"]
    if tags & {"administrator", "impersonator"}:
        named = ", ".join(sorted(tags & {"administrator", "impersonator"}))
        do = "give this tag to people, not to programs"
        yield warning(AREA, f"user {user} has the tag {named}: it can act in any name", do)
        return
    forbidden = {
        "configure": ([*topology.EXCHANGES, *_OURS], "delete or change the service's topology"),
        "write": ([topology.EVENTS, topology.DEAD, *_OURS, "amq.default"], "bypass the checks, or forge events"),
        "read": ([*topology.EXCHANGES, *_OURS], "read what customers submit"),
    }
    for kind, (names, consequence) in forbidden.items():
        if allowed := [name for name in names if _may(row[kind], name)]:
            what = f"user {user} may {kind} {', '.join(allowed)}: it can {consequence}"
            yield error(AREA, what, _NARROW.format(user=user))
    if _may(row["write"], topology.SUBMISSIONS) and (not topics or any(_any_customer(topic, user) for topic in topics)):
        yield error(
            AREA,
            f"user {user} may submit for any customer",
            f"rabbitmqctl set_topic_permissions {user} {topology.SUBMISSIONS} "
            r"'^(task|batch)\.submitted\.{username}$' '^$'",
        )
    elif _may(row["write"], topology.SUBMISSIONS) and not any(_own_customer(topic, user) for topic in topics):
        yield error(
            AREA,
            f"user {user} may submit, but not for a customer of its own name: what it claims to be admitted is kept",
            "name the user of a producer as its cust_id: deploy/README.md, Users",
        )


def _any_customer(topic: dict[str, Any], user: str) -> bool:
    return _may_submit(topic, user, _OTHER)


def _own_customer(topic: dict[str, Any], user: str) -> bool:
    return _may_submit(topic, user, user)


def _may_submit(topic: dict[str, Any], user: str, cust_id: str) -> bool:
    pattern = topic["write"].replace("{username}", re.escape(user)).replace("{vhost}", re.escape(topic["vhost"]))
    return _may(pattern, f"task.submitted.{cust_id}") or _may(pattern, f"batch.submitted.{cust_id}")


def _may(pattern: str, name: str) -> bool:
    try:
        return bool(pattern) and re.search(pattern, name) is not None
    except re.error:
        return True  # a pattern in Erlang's dialect: a finding too many is better than one too few


def _tags(tags: str | list[str]) -> set[str]:
    return set(tags.split(",") if isinstance(tags, str) else tags)
