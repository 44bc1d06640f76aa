"""The RabbitMQ users of direct producers: one per customer, named after its cust_id."""

import secrets
from collections.abc import Set
from typing import Any, Final
from urllib.parse import quote

from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.patterns import NOTHING, may, only
from ingest.broker.rabbitmq.producer_limits import LIMITS
from ingest.domain import topology
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
        users = {user["name"]: user for user in self._management.get("users")}
        if cust_id not in users and cust_id not in self._service_users:
            return False
        permissions = self._permissions(cust_id) if cust_id in users else []
        submits = all(may(row["write"], topology.SUBMISSIONS) for row in permissions)
        if cust_id in self._service_users or users[cust_id]["tags"] or not submits:
            raise ConfigurationError(
                f"RabbitMQ's user {cust_id} is not one of a producer: it belongs to the service, has tags, or may not "
                f"publish to {topology.SUBMISSIONS}. Rename that user, or use another customer id"
            )
        return True

    def create(self, cust_id: str) -> str | None:
        """Create the user with its permissions and limits; return its password, None if it existed before.

        If it existed, its password and its limits stay, and so do permissions beyond those of a producer.
        """
        password = None if self.exists(cust_id) else self._set_password(cust_id)
        vhost = self._management.vhost
        own = next((row for row in self._permissions(cust_id) if self._is_here(row)), None)
        standard = producer_permissions(cust_id)
        if own is None or all(own[kind] in (standard[kind], NOTHING) for kind in standard):
            self._management.put(f"permissions/{vhost}/{cust_id}", standard)
        topics = {"exchange": topology.SUBMISSIONS, "write": OWN_TOPICS, "read": NOTHING}
        self._management.put(f"topic-permissions/{vhost}/{cust_id}", topics)
        if password is not None:
            for name, value in LIMITS.items():
                self._management.put(f"user-limits/{cust_id}/{name}", {"value": value})
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
        if all(self._is_here(row) for row in self._permissions(cust_id)):
            self._management.delete(f"users/{cust_id}")
            return
        for kind in ("permissions", "topic-permissions"):
            self._management.delete(f"{kind}/{self._management.vhost}/{cust_id}")

    def _set_password(self, cust_id: str) -> str:
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        self._management.put(f"users/{cust_id}", {"password": password, "tags": ""})
        return password

    def _permissions(self, cust_id: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._management.get(f"users/{cust_id}/permissions")
        return rows

    def _is_here(self, row: dict[str, Any]) -> bool:
        return quote(row["vhost"], safe="") == self._management.vhost
