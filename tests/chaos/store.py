"""A private Aerospike node with its data in a file, which survives a kill; clients reach it through a proxy."""

import shutil
import signal
import time
from typing import Any, Final

import aerospike

from tests.servers.process import PrivateServer, Unavailable, free_ports, wait_until

FLUSH: Final = 0.1
"""Seconds after which what was acknowledged is on the file: the community edition flushes after it has answered."""
_CONFIG = """
service {{
    cluster-name chaos
    proto-fd-max 1024
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
        access-address 127.0.0.1
        access-port {proxy}
        alternate-access-address 127.0.0.1
        alternate-access-port {service}
    }}
    fabric {{
        address 127.0.0.1
        port {fabric}
    }}
    heartbeat {{
        mode mesh
        address 127.0.0.1
        port {heartbeat}
        interval 150
        timeout 10
    }}
    admin {{
        address 127.0.0.1
        port {admin}
    }}
}}
namespace test {{
    replication-factor 1
    nsup-period 5
    index-stage-size 128M
    sindex-stage-size 128M
    storage-engine device {{
        file {directory}/state/test.dat
        filesize 512M
        flush-max-ms 10
    }}
}}
"""


class Store:
    """One node; the harness itself talks to it without the proxy. Raises Unavailable."""

    def __init__(self) -> None:
        if not shutil.which("asd"):
            raise Unavailable("no asd on PATH")
        self.process = PrivateServer("chaos-aerospike")
        self.port, self._fabric, self._heartbeat, self._admin = free_ports(4)
        (self.process.directory / "state/smd").mkdir(parents=True)
        (self.process.directory / "state/lua").mkdir()

    def configure(self, proxy: int) -> None:
        """`proxy`: the port that it tells its clients."""
        text = _CONFIG.format(
            directory=self.process.directory,
            service=self.port,
            proxy=proxy,
            fabric=self._fabric,
            heartbeat=self._heartbeat,
            admin=self._admin,
        )
        (self.process.directory / "aerospike.conf").write_text(text)

    def start(self) -> None:
        config = self.process.directory / "aerospike.conf"
        self.process.launch(["asd", "--config-file", str(config), "--foreground"])
        wait_until(lambda: self.info("status").strip() == "ok" and self._writes(), "asd")

    def stop(self) -> None:
        self.process.signal(signal.SIGCONT)
        self.process.stop()

    def info(self, command: str) -> str:
        """The node's answer to an info command."""
        client = self._client()
        try:
            (answer,) = client.info_all(command).values()
        finally:
            client.close()
        return str(answer[1])

    def statistic(self, name: str) -> str:
        """A statistic of the namespace."""
        pairs = dict(pair.partition("=")[::2] for pair in self.info("namespace/test").strip().split(";"))
        return pairs.get(name, "")

    def objects(self, set_: str) -> int:
        fields = dict(pair.partition("=")[::2] for pair in self.info(f"sets/test/{set_}").strip(";\n").split(":"))
        return int(fields.get("objects", 0))

    def truncate(self, set_: str) -> None:
        client = self._client()
        try:
            client.truncate("test", set_, 0)
            deadline = time.monotonic() + 5
            while self.info(f"sets/test/{set_}").find("truncating=true") >= 0 and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            client.close()

    def _writes(self) -> bool:
        client = self._client()
        try:
            client.put(("test", "ready", "ready"), {"ready": 1}, policy={"ttl": 60})
        finally:
            client.close()
        return True

    def _client(self) -> Any:
        client = aerospike.client({"hosts": [("127.0.0.1", self.port)], "use_services_alternate": True})
        client.connect()
        return client
