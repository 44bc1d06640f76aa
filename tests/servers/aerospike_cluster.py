"""An Aerospike cluster on this machine. Each node can be killed, stopped, separated from the others and restarted."""

import shutil
import signal
import socket
from collections.abc import Sequence
from typing import Final

from tests.servers.aerospike import CLUSTER_NAME, configuration, launch, prepare
from tests.servers.process import PrivateServer, Unavailable, free_ports, wait_until

FLUSH: Final = 0.1
"""Seconds after which acknowledged writes are in the file: the community edition flushes after it has answered."""
_FILE: Final = """
file {directory}/state/test.dat
filesize 512M
flush-max-ms 10
"""
_ACCESS: Final = """
access-address 127.0.0.1
access-port {announced}
alternate-access-address 127.0.0.1
alternate-access-port {port}
"""
_HEADER: Final = 8
_INFO_PROTOCOL: Final = bytes([2, 1])
"""Version and type of an info request."""


class AerospikeNode:
    """One node. Raises Unavailable."""

    def __init__(self) -> None:
        if not shutil.which("asd"):
            raise Unavailable("asd is not on PATH")
        self.process = PrivateServer("aerospike")
        self._ports = free_ports(4)
        self.port, _, self.heartbeat, _ = self._ports

    def configure(self, seeds: str, *, announced: int, in_memory: bool, replication: int, min_size: int) -> None:
        """Write the configuration, once. `announced` is the port that the node tells to clients."""
        directory = self.process.directory
        text = configuration(
            directory,
            self._ports,
            nsup=5,
            engine="memory" if in_memory else "device",
            storage="data-size 512M" if in_memory else _FILE.format(directory=directory),
            access=_ACCESS.format(announced=announced, port=self.port),
            service_lines=f"min-cluster-size {min_size}\nmigrate-threads 4",
            heartbeat_lines=seeds,
            replication=replication,
        )
        prepare(directory, text)

    def start(self) -> None:
        """Start `asd`, also after `kill`; return before it answers."""
        launch(self.process)

    def kill(self) -> None:
        """End the node without warning, with SIGKILL."""
        self.process.kill()

    def shut_down(self, seconds: float = 30.0) -> int:
        """End the node with SIGTERM; return its exit code. Raises TimeoutExpired."""
        return self.process.end(seconds)

    def wipe(self) -> None:
        """Delete all files of a killed node except its configuration, as if its disk had been replaced."""
        state = self.process.directory / "state"
        shutil.rmtree(state)
        (state / "smd").mkdir(parents=True)
        (state / "lua").mkdir()

    def isolate(self, isolated: bool) -> None:
        """Separate the node from the other nodes, or join it with them again. Clients still reach it.

        Nodes tell each other their own addresses, so a proxy between them would be bypassed. But nodes ignore the
        heartbeats of a cluster with another name: each side finds the other gone, as in a split network.
        """
        name = "isolated" if isolated else CLUSTER_NAME
        answer = self.info(f"set-config:context=service;cluster-name={name}")
        assert answer == "ok", answer

    def set_min_size(self, size: int) -> None:
        """Change the number of nodes, itself included, below which the node stops serving records."""
        answer = self.info(f"set-config:context=service;min-cluster-size={size}")
        assert answer == "ok", answer

    def serves_nothing(self) -> bool:
        """Return whether the node, according to its log, refuses clients now because it sees too few nodes."""
        log = (self.process.directory / "asd.log").read_text(errors="replace")
        return log.rfind("blocking client transactions") > log.rfind("applied cluster size")

    def info(self, command: str) -> str:
        """Return the answer of this node to an info command. Raises OSError."""
        request = f"{command}\n".encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=3) as connection:
            connection.sendall(_INFO_PROTOCOL + len(request).to_bytes(_HEADER - 2, "big") + request)
            with connection.makefile("rb") as answers:
                size = int.from_bytes(answers.read(_HEADER)[2:], "big")
                answer = answers.read(size).decode()
        return answer.strip().partition("\t")[2]

    def writes(self) -> int:
        """Return how many records the node has written for clients, one by one or in batches. Raises OSError."""
        statistics = self.statistics("namespace/test")
        return int(statistics["client_write_success"]) + int(statistics["batch_sub_write_success"])

    def statistics(self, command: str = "statistics") -> dict[str, str]:
        """Return what the node reports as pairs of name and value. Raises OSError."""
        return dict(pair.partition("=")[::2] for pair in self.info(command).split(";"))


class AerospikeCluster:
    """Nodes that share a namespace `test`. Use `start`, then `stop`. Raises Unavailable.

    Args:
        size: the number of nodes.
        in_memory: whether a node that is killed loses its data; otherwise it is in a file.
        replication: copies of each record.
        min_size: a node that sees fewer nodes, itself included, stops serving records after about ten seconds.
    """

    def __init__(self, size: int = 3, *, in_memory: bool = False, replication: int = 2, min_size: int = 1) -> None:
        self.nodes = [AerospikeNode() for _ in range(size)]
        self._in_memory = in_memory
        self._replication = replication
        self._min_size = min_size

    @property
    def url(self) -> str:
        """The URL for the service, which reaches the nodes directly."""
        return f"aerospike://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}/test"

    def start(self, announced: Sequence[int] = ()) -> None:
        """Configure and start all nodes; return when they are a cluster.

        `announced` are the ports that the nodes tell to clients, for proxies; by default their own.
        """
        seeds = "\n".join(f"mesh-seed-address-port 127.0.0.1 {node.heartbeat}" for node in self.nodes)
        for node, port in zip(self.nodes, announced or [node.port for node in self.nodes], strict=True):
            node.configure(
                seeds,
                announced=port,
                in_memory=self._in_memory,
                replication=self._replication,
                min_size=self._min_size,
            )
            node.start()
        self.wait_until_whole()

    def wait_until_whole(self, seconds: float = 60.0) -> None:
        """Wait until all nodes are one cluster and no records are being moved. Raises TimeoutError, RuntimeError."""
        wait_until(
            self._is_whole,
            "the Aerospike cluster",
            seconds,
            lambda: any(node.process.ended for node in self.nodes),
        )

    def _is_whole(self) -> bool:
        """Return whether all nodes are one cluster, and no records are being moved. Raises OSError."""
        keys = {node.info(f"cluster-stable:size={len(self.nodes)};namespace=test") for node in self.nodes}
        return len(keys) == 1 and not keys.pop().upper().startswith("ERROR")

    def stop(self) -> None:
        for node in self.nodes:
            node.process.signal(signal.SIGCONT)
            node.process.stop()
