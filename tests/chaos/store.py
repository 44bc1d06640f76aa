"""A private Aerospike node. Its data is in a file that survives a kill; the service reaches it through a proxy."""

import shutil
import signal
import time
from typing import Any, Final

import aerospike

from tests.servers.aerospike import configuration, launch, prepare
from tests.servers.process import PrivateServer, Unavailable, free_ports, wait_until

FLUSH: Final = 0.1
"""Seconds after which acknowledged writes are in the file: the community edition flushes after it has answered."""
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
    """One node. The harness connects to it directly. Raises Unavailable."""

    def __init__(self) -> None:
        if not shutil.which("asd"):
            raise Unavailable("asd is not on PATH")
        self.process = PrivateServer("chaos-aerospike")
        self._ports = free_ports(4)
        self.port = self._ports[0]

    def configure(self, proxy: int) -> None:
        """Write the configuration, once, before `start`. `proxy` is the port that the node announces to clients."""
        directory = self.process.directory
        storage = _STORAGE.format(directory=directory)
        access = _ACCESS.format(proxy=proxy, service=self.port)
        text = configuration(directory, self._ports, nsup=5, engine="device", storage=storage, access=access)
        prepare(directory, text)

    def start(self) -> None:
        launch(self.process)
        wait_until(lambda: self.info("status").strip() == "ok" and self._accepts_writes(), "asd")

    def stop(self) -> None:
        self.process.signal(signal.SIGCONT)
        self.process.stop()

    def info(self, command: str) -> str:
        """Return the node's answer to an info command."""
        client = self._client()
        try:
            (answer,) = client.info_all(command).values()
        finally:
            client.close()
        return str(answer[1])

    def statistic(self, name: str) -> str:
        """Return a statistic of the namespace, empty if it has no such statistic."""
        pairs = dict(pair.partition("=")[::2] for pair in self.info("namespace/test").strip().split(";"))
        return pairs.get(name, "")

    def objects(self, set_name: str) -> int:
        """Return the number of records in a set."""
        fields = dict(pair.partition("=")[::2] for pair in self.info(f"sets/test/{set_name}").strip(";\n").split(":"))
        return int(fields.get("objects", 0))

    def truncate(self, set_name: str) -> None:
        """Delete all records of a set; wait up to five seconds until the node has finished."""
        client = self._client()
        try:
            client.truncate("test", set_name, 0)
            deadline = time.monotonic() + 5
            while self.info(f"sets/test/{set_name}").find("truncating=true") >= 0 and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            client.close()

    def _accepts_writes(self) -> bool:
        """Write a record; return True. Raises AerospikeError."""
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
