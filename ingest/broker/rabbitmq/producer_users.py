"""The RabbitMQ users of direct producers: one per customer, named after its cust_id."""

import secrets
from collections.abc import Set
from typing import Any, Final
from urllib.parse import quote

from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.patterns import NOTHING, may, only
from ingest.broker.rabbitmq.producer_limits import missing_limits
from ingest.domain import topology
from ingest.domain.customers import is_cust_id
from ingest.domain.errors import ConfigurationError

OWN_TOPICS: Final = r"^(task|batch)\.submitted\.{username}\z"
"""The routing keys of a producer. `$` would also match before a line break at the end."""
_PASSWORD_BYTES: Final = 24


def producer_permissions(cust_id: str) -> dict[str, str]:
    """Return the permissions of a producer, as RabbitMQ names them."""
    return {
        "configure": NOTHING,
        "write": only(topology.SUBMISSIONS),
        "read": only(topology.feedback_queue(cust_id).name),
    }


def _only_submits(row: dict[str, Any]) -> bool:
    """Return whether permissions in one virtual host are those of a producer, perhaps with further queues to read."""
    forbidden = (topology.EVENTS, topology.DEAD, topology.PARKED, topology.INGEST_TASKS, "amq.default")
    return (
        may(row["write"], topology.SUBMISSIONS)
        and not any(may(row["write"], name) or may(row["configure"], name) for name in forbidden)
        and not any(may(row["read"], name) for name in topology.INGEST_QUEUES)
    )


class ProducerUsers:
    """Creates, changes and deletes the users of producers.

    Every method raises BrokerUnavailable. It raises ConfigurationError if the user of the management API may not do it,
    or if the user of that name is not one of a producer.

    Args:
        management: its user needs the tag `administrator`.
        service_users: users of the service, which are never changed.
    """

    def __init__(self, management: Management, service_users: Set[str]) -> None:
        self._management = management
        self._service_users = service_users | {management.user}

    def exists(self, cust_id: str) -> bool:
        """Return whether a producer has a user."""
        if not is_cust_id(cust_id):
            raise ConfigurationError(f"{cust_id!r} is not a customer id: 1 to 64 letters, digits, _ or -")
        users = {user["name"]: user for user in self._management.get("users")}
        if cust_id not in users and cust_id not in self._service_users:
            return False
        permissions = self._permissions(cust_id) if cust_id in users else []
        is_producer = all(map(_only_submits, permissions))
        if cust_id in self._service_users or users[cust_id]["tags"] or not is_producer:
            raise ConfigurationError(
                f"RabbitMQ's user {cust_id} is not one of a producer: it belongs to the service, has tags, may not "
                f"publish to {topology.SUBMISSIONS}, or may do more than a producer. Rename that user, or use another "
                "customer id"
            )
        return True

    def create(self, cust_id: str) -> str | None:
        """Create the user with its limits and permissions; return its password, None if it existed before.

        If it existed, its password stays, and so do the limits that it has, and the right to read further queues.
        """
        password = None if self.exists(cust_id) else self._set_password(cust_id)
        self._set_missing_limits(cust_id)
        vhost = self._management.vhost
        own = next((row for row in self._permissions(cust_id) if self._is_here(row)), None)
        standard = producer_permissions(cust_id)
        if own is None or all(own[kind] in (standard[kind], NOTHING) for kind in standard):
            self._management.put(f"permissions/{vhost}/{cust_id}", standard)
        topics = {"exchange": topology.SUBMISSIONS, "write": OWN_TOPICS, "read": NOTHING}
        self._management.put(f"topic-permissions/{vhost}/{cust_id}", topics)
        return password

    def new_password(self, cust_id: str) -> str:
        """Set another password and return it. Connections stay open."""
        if not self.exists(cust_id):
            raise ConfigurationError(f"RabbitMQ has no user {cust_id}: run `ingest producer add {cust_id}`")
        return self._set_password(cust_id)

    def close_connections(self, cust_id: str) -> int:
        """Close the connections of a user; return how many there were."""
        names = [row["name"] for row in self._management.get("connections") if row.get("user") == cust_id]
        for name in names:
            self._management.delete(f"connections/{quote(name, safe='')}")
        return len(names)

    def delete(self, cust_id: str) -> None:
        """Delete the user, which closes its connections. If it also submits in another virtual host, it stays there."""
        if not self.exists(cust_id):
            return
        here = [self._is_here(row) for row in self._permissions(cust_id)]
        if all(here):
            self._management.delete(f"users/{cust_id}")
        elif any(here):
            # Without permissions, those on topics have no effect.
            self._management.delete(f"permissions/{self._management.vhost}/{cust_id}")

    def _set_missing_limits(self, cust_id: str) -> None:
        for name, value in missing_limits(cust_id, self._management.get("user-limits")).items():
            self._management.put(f"user-limits/{cust_id}/{name}", {"value": value})

    def _set_password(self, cust_id: str) -> str:
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        self._management.put(f"users/{cust_id}", {"password": password, "tags": ""})
        return password

    def _permissions(self, cust_id: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._management.get(f"users/{cust_id}/permissions")
        return rows

    def _is_here(self, row: dict[str, Any]) -> bool:
        return quote(row["vhost"], safe="") == self._management.vhost
