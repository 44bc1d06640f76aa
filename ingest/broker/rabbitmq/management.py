"""RabbitMQ's policies and definitions, and the management API, which AMQP does not cover.

Limits and dead-lettering are policies, not queue arguments, so that operators can change them.
"""

import re
import ssl
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import httpx
import msgspec

from ingest.domain import topology
from ingest.domain.errors import BrokerUnavailable, ConfigurationError, cause_of
from ingest.proxies import client_options
from ingest.urls import MANAGEMENT_EXAMPLE

_TIMEOUT: Final = 10.0
_PORTS: Final = {"http": 15672, "https": 15671}
_QUEUES: Final = ("all", "queues", "quorum_queues")
_EXCHANGES: Final = ("all", "exchanges")


_PREFIXES: Final = {
    "ingest.http": topology.HTTP_PREFIX,
    "ingest.heavy": topology.HEAVY_PREFIX,
    "ingest.direct": topology.OWN_PREFIX,
    "feedback": topology.FEEDBACK_PREFIX,
}
"""Policies of several queues, and how the names of these begin."""
_ALTERNATE: Final = {"alternate-exchange": topology.UNMATCHED}


def policies() -> dict[str, dict[str, Any]]:
    """Policies by name, as the management API takes them."""
    own_queue, _, feedback = topology.producer_queues("")
    admitted = topology.admitted_queue(topology.HTTP_BULK)
    examples = {topology.OWN_PREFIX: own_queue, topology.FEEDBACK_PREFIX: feedback}
    named = {name: (f"^{_literal(prefix)}", examples.get(prefix, admitted)) for name, prefix in _PREFIXES.items()}
    named |= {
        queue.name: (f"^{_literal(queue.name)}$", queue)
        for queue in topology.QUEUES
        if not topology.is_admitted_queue(queue.name)
    }
    of_queues = {
        name: {
            "pattern": pattern,
            "apply-to": "queues",
            "priority": 0,
            "definition": {"delivery-limit": queue.delivery_limit, **_dead_lettering(queue), **_bounds(queue)},
        }
        for name, (pattern, queue) in named.items()
    }
    of_submissions = {
        "pattern": f"^{_literal(topology.SUBMISSIONS)}$",
        "apply-to": "exchanges",
        "priority": 0,
        "definition": _ALTERNATE,
    }
    return of_queues | {topology.SUBMISSIONS: of_submissions}


def _literal(name: str) -> str:
    return name.replace(".", "[.]")


def _needed_tag(method: str, path: str) -> str:
    """Return the tag that a user of the management API needs for a call."""
    if path.startswith(("users", "permissions", "topic-permissions", "user-limits")):
        return "administrator"
    return "policymaker" if path.startswith("policies") and method == "PUT" else "monitoring"


def is_surplus(queue: str) -> str:
    """Return the sentence about a queue of the shim that the layout does not have."""
    return f"queue {queue} is surplus: its number is not below INGEST_HTTP_QUEUES or INGEST_HEAVY_QUEUES"


def unmet(queue: str, effective: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a queue's policy that are not in force.

    A queue of events may have another limit if a dead-letter exchange takes the messages that exceed it: its consumer
    decides that.
    """
    if queue in topology.EVENT_QUEUES and effective.get("dead-letter-exchange") is not None:
        return {}
    name = next((name for name, prefix in _PREFIXES.items() if queue.startswith(prefix)), queue)
    wanted: dict[str, Any] = policies()[name]["definition"]
    return {name: value for name, value in wanted.items() if effective.get(name) != value}


def _dead_lettering(queue: topology.Queue) -> dict[str, Any]:
    """Return the keys that quorum queues need, besides the limit, for at-least-once dead-lettering."""
    if queue.dead_letter_exchange is None:
        return {}
    return {
        "dead-letter-exchange": queue.dead_letter_exchange,
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
    }


def _bounds(queue: topology.Queue) -> dict[str, Any]:
    """Return the bounds of a queue that its consumer may leave unread. The submissions stay in `ingest.dead`."""
    if not queue.name.startswith(topology.FEEDBACK_PREFIX):
        return {}
    return {
        "max-length": topology.MAX_FEEDBACK,
        "max-length-bytes": topology.MAX_FEEDBACK_BYTES,
        "overflow": "drop-head",
    }


def definitions(vhost: str = "/", layout: topology.Layout = topology.DEFAULT) -> dict[str, Any]:
    """Return the topology as RabbitMQ's definitions file (`rabbitmqctl import_definitions`, `load_definitions`)."""
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
                "arguments": queue.arguments,
            }
            for queue in layout.queues
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
            for queue in layout.queues
        ],
        "policies": [{"name": name, "vhost": vhost, **policy} for name, policy in policies().items()],
    }


def rabbitmqctl_lines(vhost: str) -> list[str]:
    """Commands that set the policies without the management API."""
    return [
        f"rabbitmqctl set_policy --vhost '{vhost}' --apply-to {policy['apply-to']} '{name}' '{policy['pattern']}' "
        f"'{msgspec.json.encode(policy['definition']).decode()}'"
        for name, policy in policies().items()
        if name != topology.SUBMISSIONS  # it needs asg.unmatched, which is declared only with this API
    ]


class Policies:
    """The policies and operator policies of a virtual host."""

    def __init__(self, policies: list[dict[str, Any]], operators: list[dict[str, Any]]) -> None:
        self._kinds = (policies, operators)

    def of(self, queue: str) -> dict[str, Any]:
        """Return the keys that the policies set for a quorum queue. Of each kind, the highest priority applies."""
        return self._effective(queue, _QUEUES)

    @property
    def pass_on_unmatched(self) -> bool:
        """Whether asg.submissions passes on to asg.unmatched what no queue there is bound for."""
        return self._effective(topology.SUBMISSIONS, _EXCHANGES).items() >= _ALTERNATE.items()

    def _effective(self, name: str, applies: Sequence[str]) -> dict[str, Any]:
        effective: dict[str, Any] = {}
        for kind in self._kinds:
            matching = [pol for pol in kind if pol["apply-to"] in applies and re.search(pol["pattern"], name)]
            if matching:
                # RabbitMQ applies the lower of two limits; of other values the operator's.
                for key, value in max(matching, key=lambda policy: int(policy["priority"]))["definition"].items():
                    both_numbers = isinstance(value, int) and isinstance(effective.get(key), int)
                    effective[key] = min(value, effective[key]) if both_numbers else value
        return effective


class Management:
    """A client of RabbitMQ's management API.

    Args:
        url: `http[s]://user:password@host:15672`. The default port is 15672, for https 15671.
        vhost: the virtual host of the topology.
        ssl_context: for https; by default, public authorities are trusted.
        layout: how many queues there should be.

    Raises:
        ConfigurationError: the URL is invalid.
    """

    def __init__(
        self,
        url: str,
        vhost: str,
        ssl_context: ssl.SSLContext | None = None,
        layout: topology.Layout = topology.DEFAULT,
    ) -> None:
        self.layout = layout
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigurationError(f"INGEST_MANAGEMENT_URL must look like {MANAGEMENT_EXAMPLE}")
        if parts.path.rstrip("/") not in ("", "/api") or parts.query or parts.fragment:
            raise ConfigurationError(
                f"INGEST_MANAGEMENT_URL must end after the port: it must look like {MANAGEMENT_EXAMPLE}"
            )
        self.host = parts.hostname
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.base = f"{parts.scheme}://{host}:{parts.port or _PORTS[parts.scheme]}/api"
        self._ssl_context = ssl_context
        self._auth = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        self.vhost = quote(vhost, safe="")

    def apply_policies(self) -> None:
        """Set all policies. Raises BrokerUnavailable, ConfigurationError."""
        for name, policy in policies().items():
            self.put(f"policies/{self.vhost}/{name}", policy)

    def differences(self) -> list[str]:
        """Return the differences between broker and topology, as sentences. Raises as `apply_policies`."""
        in_force = self.policies()
        queues = [*[queue.name for queue in self.layout.queues], *self.producer_queues()]
        return [*self.drift(), *map(is_surplus, self.surplus_queues())] + [
            f"queue {queue}: policy {name} is {in_force.of(queue).get(name)}, it should be {value}"
            for queue in queues
            for name, value in unmet(queue, in_force.of(queue)).items()
        ]

    def queues(self) -> dict[str, dict[str, Any]]:
        """Return what the management API says about each queue, by its name. Raises as `apply_policies`."""
        return {queue["name"]: queue for queue in self.get(f"queues/{self.vhost}")}

    def producer_queues(self) -> list[str]:
        """Return the names of the queues that belong to single producers. Raises as `apply_policies`."""
        prefixes = (topology.OWN_PREFIX, topology.FEEDBACK_PREFIX)
        return sorted(name for name in self.queues() if name.startswith(prefixes))

    def surplus_queues(self) -> list[str]:
        """Return the names of existing queues of the shim that the layout does not have. Raises as `apply_policies`."""
        existing = self.queues()
        return [name for group in self.layout.surplus for name in group if name in existing]

    def drift(self) -> list[str]:
        """Return the differences in what AMQP declares: exchanges, queues, bindings. Raises as `apply_policies`."""
        exchanges = {exchange["name"] for exchange in self.get(f"exchanges/{self.vhost}")}
        queues = self.queues()
        differences = [f"exchange {name} is missing" for name in topology.EXCHANGES if name not in exchanges]
        for queue in self.layout.queues:
            if queue.name not in queues:
                differences.append(f"queue {queue.name} is missing")
            else:
                differences += self._queue_drift(queue, queues[queue.name], exchanges)
        if {topology.SUBMISSIONS, topology.UNMATCHED} <= exchanges and not self.policies().pass_on_unmatched:
            differences.append(f"exchange {topology.SUBMISSIONS} does not pass on to {topology.UNMATCHED} by a policy")
        return differences

    def _queue_drift(self, queue: topology.Queue, actual: dict[str, Any], exchanges: Set[str]) -> list[str]:
        differences = []
        if actual.get("type") != "quorum":
            differences.append(f"queue {queue.name} is of type {actual.get('type')}, it must be quorum")
        if queue.exchange not in exchanges:
            return differences  # it is reported as missing
        bindings = self.get(f"queues/{self.vhost}/{queue.name}/bindings")
        bound = {(binding["source"], binding["routing_key"]) for binding in bindings}
        if (queue.exchange, queue.binding) not in bound:
            differences.append(f"queue {queue.name} is not bound to {queue.exchange} with {queue.binding}")
        for obsolete in topology.OBSOLETE_BINDINGS:
            if obsolete.name == queue.name and (obsolete.exchange, obsolete.binding) in bound:
                differences.append(f"queue {queue.name} is still bound to {queue.exchange} with {obsolete.binding}")
        if queue.exchange == topology.UNMATCHED and (topology.SUBMISSIONS, queue.binding) in bound:
            differences.append(f"queue {queue.name} is still bound to {topology.SUBMISSIONS} with {queue.binding}")
        return differences

    def policies(self) -> "Policies":
        """Return the policies that are set. The statistics would show them only seconds later. Raises as `get`."""
        operators: list[dict[str, Any]] = []
        with suppress(ConfigurationError):  # not every user may read them
            operators = self.get(f"operator-policies/{self.vhost}")
        return Policies(self.get(f"policies/{self.vhost}"), operators)

    def get(self, path: str) -> Any:
        """Return the JSON at a path of the API.

        Raises BrokerUnavailable, or ConfigurationError if the user lacks the right.
        """
        return self._call("GET", path)

    def put(self, path: str, body: object) -> None:
        """Create or replace what is at a path of the API. Raises as `get`."""
        self._call("PUT", path, body)

    def delete(self, path: str) -> None:
        """Delete what is at a path of the API. Raises as `get`."""
        self._call("DELETE", path)

    @property
    def user(self) -> str:
        """The user of the API."""
        return self._auth[0]

    def _call(self, method: str, path: str, body: object = None) -> Any:
        try:
            with httpx.Client(
                **client_options(self.base, self._ssl_context), auth=self._auth, timeout=_TIMEOUT
            ) as client:
                response = client.request(method, f"{self.base}/{path}", json=body)
        except httpx.HTTPError as error:
            cause = cause_of(error)
            hint = ". If its CA is a private one, set INGEST_BROKER_CAFILE" if "CERTIFICATE_VERIFY" in cause else ""
            raise BrokerUnavailable(f"the management API at {self.base} is unreachable: {cause}{hint}") from error
        if response.status_code in (401, 403):
            tag = _needed_tag(method, path)
            raise ConfigurationError(
                f"the management API does not allow {self._auth[0]} to {method} {path}: wrong password, or the user "
                f"lacks the tag `{tag}`"
            )
        if response.is_error:
            raise BrokerUnavailable(f"the management API answers {response.status_code} to {method} {path}")
        return response.json() if response.content else None
