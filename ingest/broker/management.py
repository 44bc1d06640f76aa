"""RabbitMQ's policies, which AMQP cannot set: through the management API, or as lines for an operator to run.

Limits and dead-lettering are policies, not queue arguments, so that operators can change them.
"""

import re
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import httpx
import msgspec

from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError

_TIMEOUT: Final = 10.0
_APPLIES: Final = ("all", "queues", "quorum_queues")


def policies() -> dict[str, dict[str, Any]]:
    """Policy name to what the management API takes."""
    return {
        queue.name: {
            "pattern": f"^{queue.name.replace('.', '[.]')}$",
            "apply-to": "queues",
            "priority": 0,
            "definition": {"delivery-limit": queue.delivery_limit, **_dead_lettering(queue)},
        }
        for queue in topology.QUEUES
        if queue.delivery_limit is not None
    }


def _dead_lettering(queue: topology.Queue) -> dict[str, Any]:
    """Quorum queues need all three, and the limit, for at-least-once dead-lettering."""
    if queue.dead_letter_exchange is None:
        return {}
    return {
        "dead-letter-exchange": queue.dead_letter_exchange,
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
    }


def definitions(vhost: str = "/") -> dict[str, Any]:
    """The topology as RabbitMQ's definitions file (`rabbitmqctl import_definitions`, `load_definitions`)."""
    return {
        "exchanges": [
            {
                "name": name,
                "vhost": vhost,
                "type": "topic",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name in topology.EXCHANGES
        ],
        "queues": [
            {
                "name": queue.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": {"x-queue-type": "quorum"},
            }
            for queue in topology.QUEUES
        ],
        "bindings": [
            {
                "source": queue.exchange,
                "vhost": vhost,
                "destination": queue.name,
                "destination_type": "queue",
                "routing_key": queue.binding,
                "arguments": {},
            }
            for queue in topology.QUEUES
        ],
        "policies": [{"name": name, "vhost": vhost, **policy} for name, policy in policies().items()],
    }


def rabbitmqctl_lines(vhost: str) -> list[str]:
    """What an operator runs where the management API is not to be used."""
    return [
        f"rabbitmqctl set_policy --vhost '{vhost}' --apply-to {policy['apply-to']} '{name}' '{policy['pattern']}' "
        f"'{msgspec.json.encode(policy['definition']).decode()}'"
        for name, policy in policies().items()
    ]


class Management:
    """The management API.

    Args:
        url: `http[s]://user:password@host:15672`.
        vhost: the virtual host of the topology.
    """

    def __init__(self, url: str, vhost: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("INGEST_MANAGEMENT_URL must look like http://user:password@host:15672")
        self._base = f"{parts.scheme}://{parts.hostname}:{parts.port or 15672}/api"
        self._auth = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        self.vhost = quote(vhost, safe="")

    def apply_policies(self) -> None:
        """Raises BrokerUnavailable, ConfigurationError."""
        for name, policy in policies().items():
            self._call("PUT", f"policies/{self.vhost}/{name}", policy)

    def differences(self) -> list[str]:
        """What on the broker is not as the topology says, a sentence each. Raises as `apply_policies`."""
        found = []
        exchanges = {each["name"]: each for each in self.get(f"exchanges/{self.vhost}")}
        queues = {each["name"]: each for each in self.get(f"queues/{self.vhost}")}
        found += [f"exchange {name} is missing" for name in topology.EXCHANGES if name not in exchanges]
        for queue in topology.QUEUES:
            if queue.name not in queues:
                found.append(f"queue {queue.name} is missing")
            else:
                found += self._queue_differences(queue, queues[queue.name])
        return found

    def _queue_differences(self, queue: topology.Queue, actual: dict[str, Any]) -> list[str]:
        found = []
        if actual.get("type") != "quorum":
            found.append(f"queue {queue.name} is of type {actual.get('type')}, it must be quorum")
        bound = self.get(f"queues/{self.vhost}/{queue.name}/bindings")
        if (queue.exchange, queue.binding) not in {(each["source"], each["routing_key"]) for each in bound}:
            found.append(f"queue {queue.name} is not bound to {queue.exchange} with {queue.binding}")
        wanted = policies().get(queue.name, {}).get("definition", {})
        effective = actual.get("effective_policy_definition") or {}
        for name, value in wanted.items():
            if effective.get(name) != value:
                found.append(f"queue {queue.name}: policy {name} is {effective.get(name)}, it should be {value}")
        return found

    def policy_of(self, queue: str) -> dict[str, Any]:
        """What the policies in force say about a quorum queue, at once and not when statistics come."""
        found: dict[str, Any] = {}
        for kind in ("policies", "operator-policies"):
            fitting = [
                each
                for each in self.get(f"{kind}/{self.vhost}")
                if each["apply-to"] in _APPLIES and re.search(each["pattern"], queue)
            ]
            if fitting:
                definition = max(fitting, key=lambda each: int(each["priority"]))["definition"]
                # Of two limits the operator's holds where it is lower, as RabbitMQ has it.
                for name, value in definition.items():
                    both = isinstance(value, int) and isinstance(found.get(name), int)
                    found[name] = min(value, found[name]) if both else value
        return found

    def get(self, path: str) -> Any:
        """The JSON at a path of the API. Raises BrokerUnavailable, ConfigurationError where the user may not."""
        return self._call("GET", path)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        try:
            response = httpx.request(method, f"{self._base}/{path}", json=body, auth=self._auth, timeout=_TIMEOUT)
        except httpx.HTTPError as error:
            raise BrokerUnavailable(f"the management API at {self._base} cannot be reached: {error}") from error
        if response.status_code in (401, 403):
            tag = "policymaker" if method == "PUT" else "administrator" if "permissions" in path else "monitoring"
            raise ConfigurationError(
                f"the management API refuses user {self._auth[0]} {method} {path}: wrong password, or the user lacks "
                f"the tag `{tag}`"
            )
        if response.is_error:
            raise BrokerUnavailable(f"the management API answers {response.status_code} to {method} {path}")
        return response.json() if response.content else None
