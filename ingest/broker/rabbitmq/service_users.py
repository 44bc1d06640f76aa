"""Checks that workers trust the users of all connected shims and workers. The management API shows the connections."""

from collections import defaultdict
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from ingest.broker.rabbitmq.management import Management
from ingest.domain.findings import Finding, error, ok

_AREA: Final = "users"
_ROLES: Final = ("ingest serve", "ingest work")
"""How the names of the connections begin. Any client can choose its name, so the advice does not rely on them."""


def service_users(management: Management, trusted: frozenset[str]) -> list[Finding]:
    """Compare the users of connected shims and workers; return the findings.

    Args:
        management: its user needs the tag `monitoring`.
        trusted: INGEST_TRUSTED_USERS; if it is empty, each worker trusts its own user.

    Raises:
        BrokerUnavailable: the management API does not answer.
        ConfigurationError: its user may not see the connections.
    """
    users: defaultdict[str, set[str]] = defaultdict(set)
    count = 0
    vhost = unquote(management.vhost)
    for connection in management.get("connections"):
        role = _role(connection)
        if role and connection.get("vhost") == vhost:
            users[role].add(connection["user"])
            count += 1
    shims, workers = users[_ROLES[0]], users[_ROLES[1]]
    if not count:
        return [ok(_AREA, "no shim or worker is connected: there are no users to compare")]
    if not workers and not trusted:
        return [ok(_AREA, "no worker is connected: whether it trusts the users of the shims is not known")]
    trusted_by_all = trusted or (frozenset(workers) if len(workers) == 1 else frozenset())
    names = ", ".join(sorted(trusted_by_all))
    findings = [_untrusted(user, trusted | shims | workers) for user in sorted((shims | workers) - trusted_by_all)]
    return findings or [
        ok(
            _AREA,
            f"{count} connections of shims and workers have users whom workers trust: {names}",
        )
    ]


def _role(connection: dict[str, Any]) -> str:
    properties = connection.get("client_properties") or {}
    name = str(properties.get("connection_name", "")) if isinstance(properties, dict) else ""
    return next((role for role in _ROLES if name.startswith(role)), "")


def _untrusted(user: str, everyone: set[str] | frozenset[str]) -> Finding:
    setting = msgspec.json.encode(sorted(everyone)).decode()
    return error(
        _AREA,
        f"user {user} of connected shims or workers is one whom workers do not trust: they keep its submissions",
        f"connect shims and workers as one user. Or, if {user} belongs to the service and to no producer, set "
        f"INGEST_TRUSTED_USERS='{setting}' for all of them, and restart them",
    )
