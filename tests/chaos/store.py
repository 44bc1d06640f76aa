"""A private Aerospike node with its data in a file, which survives a kill; clients reach it through a proxy."""

import shutil
import signal
import time
from typing import Any, Final

import aerospike

from tests.servers.aerospike import configure, launch
from tests.servers.process import PrivateServer, Unavailable, free_ports, wait_until

FLUSH: Final = 0.1
"""Seconds after which what was acknowledged is on the file: the community edition flushes after it has answered."""
_STORAGE: Final = """
file {directory}/state/test.dat
filesize 512M
flush-max-ms 10
"""
_ACCESS: Final = """
access-address 127.0.0.1
access-port {proxy}
alternate-access-address 127.0.0.1
alternate-access-port {service}
"""


class Store:
    """One node; the harness itself talks to it without the proxy. Raises Unavailable."""

    def __init__(self) -> None:
        if not shutil.which("asd"):
            raise Unavailable("no asd on PATH")
        self.process = PrivateServer("chaos-aerospike")
        self._ports = free_ports(4)
        self.port = self._ports[0]

    def configure(self, proxy: int) -> None:
        """Once, before `start`. `proxy`: the port that it tells its clients."""
        directory = self.process.directory
        storage = _STORAGE.format(directory=directory)
        access = _ACCESS.format(proxy=proxy, service=self.port)
        configure(directory, self._ports, nsup=5, engine="device", storage=storage, access=access)

    def start(self) -> None:
        launch(self.process)
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
