"""An Aerospike server: INGEST_TEST_AEROSPIKE_URL if it is set, else Docker if it has the image, else `asd` on PATH."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aerospike

from ingest.domain.errors import StoreUnavailable
from ingest.domain.ports import Store
from tests.servers.docker import deployed_image, docker_has, new_container
from tests.servers.process import PrivateServer, Server, Unavailable, free_ports, wait_until

CLUSTER_NAME: Final = "tests"
_CONFIG = """
service {{
    cluster-name {cluster_name}
    proto-fd-max 4096
    {service_lines}
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
        address {address}
        port {service}
        {access}
    }}
    fabric {{
        address {address}
        port {fabric}
    }}
    heartbeat {{
        mode mesh
        address {address}
        port {heartbeat}
        {heartbeat_lines}
        interval 150
        timeout 10
    }}
    admin {{
        address {address}
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

_INSIDE = Path("/ingest-tests")
"""The directory of a node in a container."""


def configuration(
    directory: Path,
    ports: Sequence[int],
    *,
    nsup: int,
    storage: str,
    engine: str = "memory",
    namespace: str = "",
    access: str = "",
    service_lines: str = "",
    heartbeat_lines: str = "",
    replication: int = 1,
    address: str = "127.0.0.1",
) -> str:
    """Return the configuration of a node with a namespace `test`.

    Args:
        directory: the node's directory.
        ports: the ports for service, fabric, heartbeat and admin.
        nsup: nsup-period in seconds; with 0, the node refuses records with a time to live.
        storage: configuration lines for the storage engine.
        engine: the storage engine, `memory` or `device`.
        namespace: configuration lines for the namespace.
        access: configuration lines for the network service.
        service_lines: configuration lines for the service.
        heartbeat_lines: configuration lines for the heartbeat.
        replication: copies of each record, if there are several nodes.
        address: the address that the node listens on.
    """
    service, fabric, heartbeat, admin = ports
    return _CONFIG.format(
        cluster_name=CLUSTER_NAME,
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
        service_lines=service_lines,
        heartbeat_lines=heartbeat_lines,
        replication=replication,
        address=address,
    )


def prepare(directory: Path, text: str) -> None:
    """Create the files of a node: the directory `state`, and `aerospike.conf` with a text."""
    (directory / "state/smd").mkdir(parents=True)
    (directory / "state/lua").mkdir()
    (directory / "aerospike.conf").write_text(text)


def launch(process: PrivateServer) -> None:
    """Start `asd` with the files that `prepare` created; return before it answers."""
    process.launch(["asd", "--config-file", str(process.directory / "aerospike.conf"), "--foreground"])


class AerospikeServer(Server):
    """One node with a namespace `test` in memory, so a node that is killed loses its data. Raises Unavailable.

    A given URL is used only without arguments other than `size`, which has no effect then.

    Args:
        size: the most data that the namespace holds.
        nsup: nsup-period in seconds; with 0, the node refuses records with a time to live.
        storage: further configuration lines for the storage engine.
        namespace: further configuration lines for the namespace.
        controllable: whether the node must be a private process, which can be killed and paused.
    """

    def __init__(
        self, size: str = "1G", *, nsup: int = 10, storage: str = "", namespace: str = "", controllable: bool = False
    ) -> None:
        super().__init__()
        self._ttl = 60 if nsup else 0
        special = bool(nsup != 10 or storage or namespace or controllable)
        if not special and (url := os.environ.get("INGEST_TEST_AEROSPIKE_URL")):
            self.url, self.origin = url, "INGEST_TEST_AEROSPIKE_URL"
            return
        in_docker = not controllable and docker_has(deployed_image("aerospike"))
        if not in_docker and not shutil.which("asd"):
            docker = "" if controllable else "no Docker engine answers that has the image, and "
            raise Unavailable(f"{docker}asd is not on PATH")
        ports = free_ports(4)
        self._address = ("127.0.0.1", ports[0])
        self.url = f"aerospike://127.0.0.1:{ports[0]}/test"
        lines: dict[str, Any] = {
            "nsup": nsup,
            "storage": f"data-size {size}\n{storage}",
            "namespace": namespace,
            "access": "access-address 127.0.0.1",
        }
        if in_docker:
            self.origin = "Docker"
            self._start_container(ports[0], configuration(_INSIDE, ports, address="any", **lines))
        else:
            self.origin = "asd on PATH"
            self._process = PrivateServer("aerospike")
            prepare(self._process.directory, configuration(self._process.directory, ports, **lines))
            self.start()

    def start(self) -> None:
        """Start `asd`, also after `kill`."""
        assert self._process is not None
        launch(self._process)
        wait_until(self._writes, "asd")

    def _start_container(self, port: int, text: str) -> None:
        container = new_container(deployed_image("aerospike"), {port: port})
        container.with_copy_into_container(text.encode(), f"{_INSIDE}/aerospike.conf")
        command = "mkdir -p state/smd state/lua && exec asd --foreground --config-file $PWD/aerospike.conf"
        container.with_command(["sh", "-c", f"cd {_INSIDE} && {command}"])
        self.start_container(container, self._writes, "Aerospike in Docker")

    def _writes(self) -> None:
        client = aerospike.client({"hosts": [self._address]})
        try:
            client.connect()
            client.put(("test", "ready", "ready"), {"ready": 1}, policy={"ttl": self._ttl})
        finally:
            client.close()


async def until_ready(store: Store, seconds: float = 30.0) -> None:
    """Wait until a store is ready. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await store.ready()
            except StoreUnavailable:
                await asyncio.sleep(0.2)
