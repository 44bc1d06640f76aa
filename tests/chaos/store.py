"""A private Aerospike of one or several nodes. Its data is in files; the service reaches each node through a proxy."""

import signal
import time
from collections.abc import Sequence
from typing import Any

import aerospike

from tests.chaos.proxy import Proxy
from tests.servers.aerospike_cluster import AerospikeCluster, AerospikeNode


class Store:
    """The nodes and their proxies. The harness connects to the nodes directly. Raises Unavailable.

    A record has two copies if there are several nodes. Of three nodes, one that sees no other stops serving them.
    """

    def __init__(self, size: int) -> None:
        self._cluster = AerospikeCluster(size, replication=min(size, 2), min_size=size // 2 + 1)
        self.nodes = self._cluster.nodes
        self.proxies = [Proxy(node.port) for node in self.nodes]

    @property
    def url(self) -> str:
        """The URL for the service, through the proxies, which must have started."""
        return f"aerospike://{','.join(f'127.0.0.1:{proxy.port}' for proxy in self.proxies)}/test"

    def configure_and_start(self) -> None:
        """Start all nodes for the first time, after the proxies."""
        self._cluster.start([proxy.port for proxy in self.proxies])
        self._accepts_writes()

    def restart(self, nodes: Sequence[AerospikeNode]) -> None:
        """Start nodes that were killed; return when all nodes are one cluster again and have moved their records."""
        for node in nodes:
            node.start()
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until all nodes are one cluster, have moved their records, and take writes. Raises TimeoutError."""
        self._cluster.wait_until_whole(120)
        self._accepts_writes()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every node."""
        for node in self.nodes:
            node.process.signal(number)

    def stop(self) -> None:
        self._cluster.stop()

    def info(self, command: str) -> list[str]:
        """Return the answer of every node to an info command. Raises OSError."""
        return [node.info(command) for node in self.nodes]

    def statistic(self, name: str) -> set[str]:
        """Return the values that the nodes have of a statistic of the namespace."""
        return {node.statistics("namespace/test").get(name, "") for node in self.nodes}

    def objects(self, set_name: str) -> int:
        """Return the number of records in a set, counting every copy."""
        answers = self.info(f"sets/test/{set_name}")
        fields = [dict(pair.partition("=")[::2] for pair in answer.strip(";").split(":")) for answer in answers]
        return sum(int(node.get("objects", 0)) for node in fields)

    def truncate(self, set_name: str) -> None:
        """Delete all records of a set; wait up to five seconds until the nodes have finished."""
        client = self._client()
        try:
            client.truncate("test", set_name, 0)
            deadline = time.monotonic() + 5
            while "truncating=true" in "".join(self.info(f"sets/test/{set_name}")) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            client.close()

    def _accepts_writes(self) -> None:
        """Write a record. Raises AerospikeError."""
        client = self._client()
        try:
            client.put(("test", "ready", "ready"), {"ready": 1}, policy={"ttl": 60})
        finally:
            client.close()

    def _client(self) -> Any:
        hosts = [("127.0.0.1", node.port) for node in self.nodes]
        client = aerospike.client({"hosts": hosts, "use_services_alternate": True})
        client.connect()
        return client
