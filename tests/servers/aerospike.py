"""An Aerospike server: INGEST_TEST_AEROSPIKE_URL if it is set, else Docker, else `asd` on PATH."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import aerospike

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ports import Store
from tests.servers.process import PrivateServer, Server, Unavailable, docker_answers, free_ports, wait_until

IMAGE = "aerospike/aerospike-server:8.1.0.1"
_CONFIG = """
service {{
    cluster-name tests
    proto-fd-max 4096
    work-directory {directory}/state
    pidfile {directory}/asd.pid
}}
mod-lua {{
    user-path {directory}/state/lua
}}
logging {{
    file {directory}/asd.log {{
        context any info
    }}
}}
network {{
    service {{
        address 127.0.0.1
        port {service}
        {access}
    }}
    fabric {{
        address 127.0.0.1
        port {fabric}
    }}
    heartbeat {{
        mode mesh
        address 127.0.0.1
        port {heartbeat}
        {heartbeat_lines}
        interval 150
        timeout 10
    }}
    admin {{
        address 127.0.0.1
        port {admin}
    }}
}}
namespace test {{
    replication-factor {replication}
    nsup-period {nsup}
    index-stage-size 128M
    sindex-stage-size 128M
    storage-engine {engine} {{
        {storage}
    }}
    {namespace}
}}
"""


def configure(
    directory: Path,
    ports: Sequence[int],
    *,
    nsup: int,
    engine: str,
    storage: str,
    namespace: str = "",
    access: str = "",
    heartbeat_lines: str = "",
    replication: int = 1,
) -> None:
    """Create the files of a node: the directory `state`, and `aerospike.conf` with a namespace `test`.

    Args:
        directory: the node's directory.
        ports: the ports for service, fabric, heartbeat and admin.
        nsup: nsup-period in seconds; with 0, the node refuses records with a time to live.
        engine: the storage engine, `memory` or `device`.
        storage: configuration lines for the storage engine.
        namespace: configuration lines for the namespace.
        access: configuration lines for the network service.
        heartbeat_lines: configuration lines for the heartbeat.
        replication: copies of each record, if there are several nodes.
    """
    (directory / "state/smd").mkdir(parents=True)
    (directory / "state/lua").mkdir()
    service, fabric, heartbeat, admin = ports
    text = _CONFIG.format(
        directory=directory,
        service=service,
        fabric=fabric,
        heartbeat=heartbeat,
        admin=admin,
        nsup=nsup,
        engine=engine,
        storage=storage,
        namespace=namespace,
        access=access,
        heartbeat_lines=heartbeat_lines,
        replication=replication,
    )
    (directory / "aerospike.conf").write_text(text)


def launch(process: PrivateServer) -> None:
    """Start `asd` with the files that `configure` created; return before it answers."""
    process.launch(["asd", "--config-file", str(process.directory / "aerospike.conf"), "--foreground"])


class AerospikeServer(Server):
    """One node with a namespace `test` in memory, so a node that is killed loses its data. Raises Unavailable.

    The arguments have an effect only if `asd` is started here.

    Args:
        size: the most data that the namespace holds.
        nsup: nsup-period in seconds; with 0, the node refuses records with a time to live.
        storage: further configuration lines for the storage engine.
        namespace: further configuration lines for the namespace.
    """

    def __init__(self, size: str = "1G", *, nsup: int = 10, storage: str = "", namespace: str = "") -> None:
        super().__init__()
        self._ttl = 60 if nsup else 0
        if url := os.environ.get("INGEST_TEST_AEROSPIKE_URL"):
            self.url, self.origin = url, "INGEST_TEST_AEROSPIKE_URL"
        elif docker_answers():
            self._start_container()
        elif shutil.which("asd"):
            self._process = process = PrivateServer("aerospike")
            ports = free_ports(4)
            self._address = ("127.0.0.1", ports[0])
            self.url, self.origin = f"aerospike://127.0.0.1:{ports[0]}/test", "asd on PATH"
            storage = f"data-size {size}\n{storage}"
            configure(process.directory, ports, nsup=nsup, engine="memory", storage=storage, namespace=namespace)
            self.start()
        else:
            raise Unavailable("Docker does not answer, and asd is not on PATH")

    def start(self) -> None:
        """Start `asd`, also after `kill`."""
        assert self._process is not None
        launch(self._process)
        wait_until(self._writes, "asd")

    def _start_container(self) -> None:
        from testcontainers.core.container import DockerContainer

        self._container = DockerContainer(IMAGE).with_env("NSUP_PERIOD", "10").with_exposed_ports(3000)
        self._container.start()
        self._address = (self._container.get_container_host_ip(), int(self._container.get_exposed_port(3000)))
        self.url, self.origin = f"aerospike://{self._address[0]}:{self._address[1]}/test", "Docker"
        wait_until(self._writes, "Aerospike in Docker")

    def _writes(self) -> None:
        client = aerospike.client({"hosts": [self._address], "use_services_alternate": self._container is not None})
        try:
            client.connect()
            client.put(("test", "ready", "ready"), {"ready": 1}, policy={"ttl": self._ttl})
        finally:
            client.close()


class AerospikeCluster:
    """Nodes on this machine that share a namespace `test` in memory, with two copies of each record.

    Raises Unavailable.
    """

    def __init__(self, size: int = 3) -> None:
        if not shutil.which("asd"):
            raise Unavailable("asd is not on PATH")
        self.nodes = [PrivateServer("aerospike") for _ in range(size)]
        ports = [free_ports(4) for _ in self.nodes]
        seeds = "\n".join(f"mesh-seed-address-port 127.0.0.1 {heartbeat}" for _, _, heartbeat, _ in ports)
        for node, node_ports in zip(self.nodes, ports, strict=True):
            configure(
                node.directory,
                node_ports,
                nsup=10,
                engine="memory",
                storage="data-size 512M",
                access="access-address 127.0.0.1",
                heartbeat_lines=seeds,
                replication=2,
            )
            launch(node)
        self._addresses = [("127.0.0.1", service) for service, *_ in ports]
        self.url = f"aerospike://{','.join(f'{host}:{port}' for host, port in self._addresses)}/test"
        wait_until(self._is_complete, "the Aerospike cluster")

    def _is_complete(self) -> bool:
        client = aerospike.client({"hosts": self._addresses})
        try:
            client.connect()
            return len(client.get_nodes()) == len(self.nodes)
        finally:
            client.close()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


async def until_ready(store: Store, seconds: float = 30.0) -> None:
    """Wait until a store is ready. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await store.ready()
            except StoreUnavailable:
                await asyncio.sleep(0.2)
