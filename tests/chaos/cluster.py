"""A private RabbitMQ cluster of three nodes on this machine. Each node can be killed, stopped and restarted."""

import asyncio
import os
import secrets
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx

from tests.servers.process import PrivateServer, Unavailable, free_ports, port_mapper, wait_until
from tests.servers.rabbitmq_programs import ctl_program, mapper_program, server_program

NODES: Final = 3
_BOOT: Final = 120.0


class Node:
    """One node. `amqp` and `management` are its ports."""

    def __init__(self, number: int, mapper: int, cookie: str, first: str | None) -> None:
        self.process = PrivateServer(f"chaos-rabbit{number}")
        self.name = f"chaos{number}-{secrets.token_hex(3)}@localhost"
        self.amqp, self.management, distribution = free_ports(3)
        home = self.process.directory
        self.log = home / "log"
        (home / ".erlang.cookie").write_text(cookie)
        (home / ".erlang.cookie").chmod(0o400)
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.amqp}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {self.management}",
            "disk_free_limit.absolute = 50MB",
            "cluster_partition_handling = pause_minority",
            "collect_statistics_interval = 2000",
        ]
        if first is not None:
            lines += [
                "cluster_formation.peer_discovery_backend = classic_config",
                f"cluster_formation.classic_config.nodes.1 = {first}",
                f"cluster_formation.classic_config.nodes.2 = {self.name}",
            ]
        (home / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (home / "plugins").write_text("[rabbitmq_management].")
        self._env = {
            "HOME": str(home),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(self.amqp),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.log),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            # Three nodes share this machine with the processes under test, so none may spin while it waits.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def launch(self) -> None:
        self.process.launch([server_program()], self._env)

    def wait(self) -> None:
        wait_until(self.running, f"{self.name} of the cluster", _BOOT)

    def running(self) -> bool:
        # Two nodes of 3.10 that boot together may fail to agree on feature flags and exit; systemd would restart them.
        if self.process.ended:
            self.launch()
        self.api("GET", "overview")
        return True

    def api(self, method: str, path: str, body: object = None) -> Any:
        url = f"http://127.0.0.1:{self.management}/api/{path}"
        response = httpx.request(method, url, json=body, auth=("guest", "guest"), timeout=10)
        response.raise_for_status()
        return response.json() if response.content else None

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node; return its output. Raises CalledProcessError, TimeoutExpired."""
        command = [ctl_program(), *arguments]
        env = {**os.environ, **self._env}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout

    def state(self) -> str:
        """Return the state of its Erlang process as in proc(5), e.g. S or T; empty if there is no such process."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            state, _, group = rest.split()[:3]
            if name == "beam.smp" and group == str(self.process.group):
                return state
        return ""

    def log_text(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.log.glob("*.log")))


class Cluster:
    """Three nodes. All methods block, so the harness calls them in threads.

    Raises:
        Unavailable: RabbitMQ is not installed.
    """

    def __init__(self) -> None:
        server_program()
        program = mapper_program()
        if program is None:
            raise Unavailable("epmd is not on PATH")
        (mapper,) = free_ports(1)
        # A port mapper started by a node would end with it, but the other nodes need it.
        self._mapper = port_mapper(program, mapper)
        cookie = secrets.token_hex(16).upper()
        first = Node(0, mapper, cookie, None)
        self.nodes = [first, *[Node(number, mapper, cookie, first.name) for number in range(1, NODES)]]

    def start(self) -> None:
        self.nodes[0].launch()
        self.nodes[0].wait()
        self.boot(self.nodes[1:])
        names = {node["name"] for node in self.api("GET", "nodes") if node["running"]}
        assert names == {node.name for node in self.nodes}, names

    def boot(self, nodes: list[Node]) -> None:
        """Start these nodes together and wait until all are ready."""
        for node in nodes:
            node.launch()
        with ThreadPoolExecutor(len(nodes)) as pool:
            list(pool.map(Node.wait, nodes))

    def stop(self) -> None:
        for node in self.nodes:
            node.process.signal(signal.SIGCONT)
            node.process.stop()
        self._mapper.stop()

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API of the first node that answers. Raises HTTPStatusError, TimeoutError."""
        last_error: Exception | None = None
        for node in self.nodes:
            try:
                return node.api(method, path, body)
            except httpx.HTTPStatusError:
                raise
            except httpx.HTTPError as error:
                last_error = error
        raise TimeoutError(f"no node answers: {last_error}")

    def leader(self, queue: str) -> Node:
        """Return the node that leads this quorum queue."""
        name = self.api("GET", f"queues/%2F/{queue}")["leader"]
        return next(node for node in self.nodes if node.name == name)

    def evaluate(self, expression: str) -> list[str]:
        """Evaluate an Erlang expression on every node; return the results, empty for a node that does not answer."""

        def evaluate_on(node: Node) -> str:
            try:
                return node.ctl("eval", expression).strip()
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                return ""

        with ThreadPoolExecutor(NODES) as pool:
            return list(pool.map(evaluate_on, self.nodes))

    def close_connections(self) -> int:
        """Close all client connections, as an operator can; return how many."""
        answers = self.evaluate(
            "Cs = rabbit_networking:local_connections(), "
            '[rabbit_networking:close_connection(P, "chaos") || P <- Cs], length(Cs).'
        )
        return sum(int(answer) for answer in answers if answer.isdigit())

    def isolate(self, node: Node, isolated: bool) -> None:
        """Separate a node from the other nodes, or let it join them again. Clients still reach it.

        The node expects another cookie of the others, so that none of them can connect to it, nor it to them.
        """
        others = ", ".join(f"'{other.name}'" for other in self.nodes if other is not node)
        cookie = "separated" if isolated else "erlang:get_cookie()"
        separate = f"{{erlang:set_cookie(N, {cookie}), erlang:disconnect_node(N)}}"
        answer = node.ctl("eval", f"[{separate} || N <- [{others}]].")
        assert "true" in answer, answer

    def connected(self, node: Node) -> set[str]:
        """Return the names of the nodes of the cluster that this node is connected to."""
        answer = node.ctl("eval", "nodes().")
        return {other.name for other in self.nodes if other.name in answer}

    def depths(self) -> dict[str, int]:
        """Return the number of messages in each queue, including unacknowledged ones."""
        output = self.nodes[0].ctl(
            "list_queues", "name", "messages", "--quiet", "--no-table-headers", "--timeout", "20"
        )
        rows = [line.split() for line in output.splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}

    def describe(self, queue: str) -> str:
        """Return the content and the consumers of a queue, for people to read."""
        commands = (
            ("list_queues", "name", "messages_ready", "messages_unacknowledged", "leader", "online"),
            ("list_consumers", "queue_name", "consumer_tag", "channel_pid", "prefetch_count", "active"),
        )
        rows = [row for command in commands for row in self.nodes[0].ctl(*command, "--quiet").splitlines()]
        # The state of the Raft machine also has cancelled consumers and the deliveries that they still hold.
        name = f"'%2F_{queue}'"
        states = self.evaluate(f"element(2, ra:local_query({{{name}, node()}}, fun rabbit_fifo:overview/1)).")
        return "\n".join([row for row in rows if row.startswith(queue)] + states)


async def off_loop(function: Any, *arguments: Any) -> Any:
    """Call a blocking function in a thread."""
    return await asyncio.to_thread(function, *arguments)
