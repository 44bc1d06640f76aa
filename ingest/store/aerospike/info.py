"""What an Aerospike cluster reports about itself: statistics and configuration of each node."""

from operator import methodcaller
from typing import Any, Final, Self

import msgspec

from ingest.domain.errors import StoreUnavailable
from ingest.store.aerospike.client import AerospikeClient, parse_url

_EPOCH: Final = 1_262_304_000
"""Aerospike's clocks count from 2010."""


class Node(msgspec.Struct, frozen=True):
    """One node.

    `service` is the configuration of the node. `namespace` has the statistics and configuration of our namespace; empty
    if the node does not have this namespace.
    """

    name: str
    build: str
    edition: str
    statistics: dict[str, str]
    namespaces: list[str]
    service: dict[str, str]
    namespace: dict[str, str]
    sets: list[dict[str, str]]

    @property
    def major(self) -> int:
        """The first number of the version; 0 if it is unknown."""
        first = self.build.partition(".")[0]
        return int(first) if first.isdigit() else 0

    @property
    def clock(self) -> int | None:
        """The node's Unix time in seconds; None if it is unknown."""
        return _EPOCH + int(self.namespace["current_time"]) if "current_time" in self.namespace else None

    def number(self, name: str) -> float | None:
        """Return a statistic or setting of the namespace; None if this version does not have it."""
        try:
            return float(self.namespace[name])
        except (KeyError, ValueError):
            return None

    def is_true(self, name: str) -> bool:
        return self.namespace.get(name) == "true"


class AerospikeView:
    """A client that reads what the nodes report. Use `open`, then `close`."""

    def __init__(self, client: AerospikeClient) -> None:
        self._client = client

    @classmethod
    def open(cls, url: str, timeout: float) -> Self:
        """Make a reader of the information; it connects at its first call. Raises ConfigurationError."""
        return cls(AerospikeClient(parse_url(url), timeout))

    @property
    def namespace(self) -> str:
        return self._client.namespace

    @property
    def hosts(self) -> int:
        """The number of hosts in the URL."""
        return self._client.hosts

    async def nodes(self) -> list[Node]:
        """Return all nodes. Raises StoreUnavailable."""
        ours = self._client.namespace
        answers = {
            command: await self._client.call(methodcaller("info_all", command))
            for command in (
                *("build", "edition", "statistics", "namespaces", "get-config:context=service"),
                *(f"namespace/{ours}", f"sets/{ours}"),
            )
        }
        nodes = []
        for name in sorted(answers["build"]):
            build, edition, statistics, namespaces, service, namespace, sets = (
                _text(answer.get(name)) for answer in answers.values()
            )
            nodes.append(
                Node(
                    name=name,
                    build=build,
                    edition=edition.removeprefix("Aerospike ").removesuffix(" Edition"),
                    statistics=_pairs(statistics),
                    namespaces=namespaces.split(";"),
                    service=_pairs(service),
                    namespace=_pairs(namespace) if ours in namespaces.split(";") else {},
                    sets=[_pairs(text, ":") for text in sets.split(";") if text],
                )
            )
        if not nodes:
            raise StoreUnavailable("no node of the Aerospike cluster answers")
        return nodes

    async def ping(self) -> None:
        """Read one record, which may not exist, as the service does. Raises StoreUnavailable."""
        await self._client.read([(self._client.namespace, "ready", "ready")])

    async def close(self) -> None:
        await self._client.close()


def _text(answer: Any) -> str:
    """Return the text of a node's answer (error, text); empty if the node refused or does not have the namespace."""
    failed, text = answer or (None, "")
    text = (text or "").strip()
    # Statistics may begin with `failed_best_practices=true`, which is not a failure.
    return "" if failed or text.upper().startswith(("ERROR:", "FAIL:")) or text.upper() in ("ERROR", "FAIL") else text


def _pairs(text: str, separator: str = ";") -> dict[str, str]:
    return {name: value for name, _, value in (pair.partition("=") for pair in text.split(separator)) if value}
