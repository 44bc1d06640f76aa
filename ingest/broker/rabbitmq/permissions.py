"""Who may do what on the broker: enough for the service, and no more than their own for everybody else."""

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.errors import ConfigurationError
from ingest.domain.findings import Finding, Severity, error, ok, warning

AREA: Final = "permissions"
_OTHER: Final = "ingest-doctor-somebody-else"
_OURS: Final = (topology.INGEST_TASKS, topology.INGEST_BATCHES, topology.INGEST_DEAD)
_ENOUGH: Final = "^(asg|ingest|consensus|webhook)[.].*"
_NARROW: Final = (
    "rabbitmqctl set_permissions {user} '^$' '^asg[.]submissions$' '^$', or what a consumer downstream needs"
)


def permissions(management: Management, user: str | None, trusted: frozenset[str]) -> list[Finding]:
    """All findings. Raises BrokerUnavailable.

    Args:
        management: its user needs the tag `administrator` for this.
        user: whom the service connects as.
        trusted: the service's users.
    """
    vhost = unquote(management.vhost)
    try:
        rows = [each for each in management.get("permissions") if each["vhost"] == vhost]
        topics = [each for each in management.get("topic-permissions") if each["vhost"] == vhost]
        tags = {each["name"]: _tags(each["tags"]) for each in management.get("users")}
    except ConfigurationError as why:
        return [ok(AREA, f"not checked, which takes the tag `administrator`: {why}")]
    found = [*_service(rows, user)] if user else []
    strangers = [each for each in rows if each["user"] not in trusted | {user}]
    for row in strangers:
        mine = [each for each in topics if each["user"] == row["user"] and each["exchange"] == topology.SUBMISSIONS]
        found += _stranger(row, mine, tags.get(row["user"], set()))
    if not any(each.severity is not Severity.OK for each in found):
        found.append(ok(AREA, f"{len(strangers)} other users may do no more than they should"))
    return found


def _service(rows: list[dict[str, Any]], user: str) -> Iterator[Finding]:
    row = next((each for each in rows if each["user"] == user), None)
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
            AREA, "the service's user is guest, whose password everybody knows", "deploy/README.md: own users"
        )


def _stranger(row: dict[str, Any], topics: list[dict[str, Any]], tags: set[str]) -> Iterator[Finding]:
    user = row["user"]
    if tags & {"administrator", "impersonator"}:
        named = ", ".join(sorted(tags & {"administrator", "impersonator"}))
        yield warning(
            AREA, f"user {user} has the tag {named}: it can act in any name", "keep it for people, not programs"
        )
        return
    forbidden = {
        "configure": ([*topology.EXCHANGES, *_OURS], "delete or change what the service stands on"),
        "write": ([topology.EVENTS, topology.DEAD, *_OURS, "amq.default"], "get past the door, or forge events"),
        "read": ([*topology.EXCHANGES, *_OURS], "read what customers submit"),
    }
    for kind, (names, follows) in forbidden.items():
        if may := [name for name in names if _may(row[kind], name)]:
            yield error(AREA, f"user {user} may {kind} {', '.join(may)}: it can {follows}", _NARROW.format(user=user))
    if _may(row["write"], topology.SUBMISSIONS) and (not topics or any(_any_customer(each, user) for each in topics)):
        yield error(
            AREA,
            f"user {user} may submit for any customer",
            f"rabbitmqctl set_topic_permissions {user} {topology.SUBMISSIONS} "
            r"'^(task|batch)\.submitted\.{username}$' '^$'",
        )


def _any_customer(topic: dict[str, Any], user: str) -> bool:
    pattern = topic["write"].replace("{username}", re.escape(user)).replace("{vhost}", re.escape(topic["vhost"]))
    return _may(pattern, f"task.submitted.{_OTHER}") or _may(pattern, f"batch.submitted.{_OTHER}")


def _may(pattern: str, name: str) -> bool:
    try:
        return bool(pattern) and re.search(pattern, name) is not None
    except re.error:
        return True  # Erlang's dialect: rather a finding too many


def _tags(tags: str | list[str]) -> set[str]:
    return set(tags.split(",") if isinstance(tags, str) else tags)
