"""A RabbitMQ node for the tests.

It is the one at INGEST_TEST_RABBITMQ_URL, else a process of the programs in INGEST_TEST_RABBITMQ_BIN, else a container
if Docker has the image, else a process of the program on PATH.
"""

import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from tests.servers.docker import deployed_image, docker_has, new_container
from tests.servers.process import PrivateServer, Server, Unavailable, free_ports, port_mapper, wait_until
from tests.servers.rabbitmq_programs import ctl_program, mapper_program, named_directory, origin, server_program

_DEPLOYED = Path(__file__).parents[2] / "deploy/rabbitmq"


class RabbitServer(Server):
    """One node with the management plugin. Raises Unavailable.

    `url` is its default virtual host; `new_vhost` creates one that no other test uses. `metrics` is the address
    (host:port) of its Prometheus plugin, or None if the address is unknown.

    With any argument, the node is always a private process. ValueError: INGEST_TEST_RABBITMQ_BIN is wrong.

    Args:
        more: additional configuration lines.
        plugins: additional plugins.
    """

    def __init__(self, more: str = "", plugins: Sequence[str] = ()) -> None:
        super().__init__()
        self.metrics: str | None = None
        self._mapper: PrivateServer | None = None
        special = bool(more or plugins)
        if not special and (url := os.environ.get("INGEST_TEST_RABBITMQ_URL")):
            self.url = url
            self.management_url = os.environ.get("INGEST_TEST_RABBITMQ_MANAGEMENT_URL", "http://127.0.0.1:15672")
            self.origin = f"RabbitMQ {self._version()} at INGEST_TEST_RABBITMQ_URL"
        elif not special and named_directory() is None and docker_has(deployed_image("rabbitmq")):
            self._start_container()
        else:
            try:
                server_program()
            except Unavailable as error:
                docker = "" if special else "no Docker engine answers that has the image, and "
                raise Unavailable(f"{docker}{error}") from None
            self._prepare(more, plugins)
            self.start()
            self.origin = f"rabbitmq-server {self._version()} {origin()}"

    def start(self) -> None:
        """Start the node, also after `kill`. It keeps its data."""
        assert self._process is not None
        self._process.launch([server_program()], self._env)
        wait_until(self._answers, "rabbitmq-server")

    def stop(self) -> None:
        super().stop()
        if self._mapper is not None:
            self._mapper.stop()

    def new_vhost(self) -> str:
        """Create an empty virtual host; return its URL."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.api("PUT", f"vhosts/{name}")
        self.api("PUT", f"permissions/{name}/{self._user[0]}", {"configure": ".*", "write": ".*", "read": ".*"})
        return f"{self.url.rstrip('/')}/{name}"

    def drop_vhost(self, url: str) -> None:
        self.api("DELETE", f"vhosts/{urlsplit(url).path[1:]}")

    @property
    def has_ctl(self) -> bool:
        """Whether `ctl` reaches the node."""
        return self._process is not None or self._container is not None

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the node; return its output. Raises subprocess.CalledProcessError."""
        if self._container is not None:
            code, output = self._container.exec(["rabbitmqctl", *arguments])
            if code:
                raise subprocess.CalledProcessError(code, "rabbitmqctl", output)
            return str(output.decode())
        command = [ctl_program(), *arguments]
        done = subprocess.run(
            command, env={**os.environ, **self._env}, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API; return the decoded answer. Raises httpx.HTTPStatusError."""
        response = httpx.request(method, f"{self.management_url}/api/{path}", json=body, auth=self._user, timeout=30)
        response.raise_for_status()
        return response.json() if response.content else None

    def close_connection(self, name: str) -> None:
        """Close a client's connection. RabbitMQ made its name."""
        self.api("DELETE", f"connections/{quote(name, safe='')}")

    def _version(self) -> str:
        return str(self.api("GET", "overview")["rabbitmq_version"])

    @property
    def _user(self) -> tuple[str, str]:
        parts = urlsplit(self.url)
        return parts.username or "guest", parts.password or "guest"

    def _prepare(self, more: str, plugins: Sequence[str]) -> None:
        self._process = process = PrivateServer("rabbitmq")
        amqp, management, distribution, mapper, metrics = free_ports(5)
        home = process.directory
        self.url = f"amqp://guest:guest@127.0.0.1:{amqp}"
        self.management_url = f"http://127.0.0.1:{management}"
        self.metrics = f"127.0.0.1:{metrics}"
        (home / "rabbitmq.conf").write_text(
            f"{_deployed_configuration()}\nlisteners.tcp.1 = 127.0.0.1:{amqp}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n"
            f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {metrics}\n{more}"
        )
        enabled = (_DEPLOYED / "enabled_plugins").read_text().rstrip().removesuffix("].")
        (home / "plugins").write_text(f"{','.join([enabled, *plugins])}].\n")
        self._env = {
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"t{uuid.uuid4().hex[:8]}@localhost",
            "RABBITMQ_NODE_PORT": str(amqp),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        if program := mapper_program():
            self._mapper = port_mapper(program, mapper)

    def _start_container(self) -> None:
        amqp, management, metrics = free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{amqp}"
        self.management_url = f"http://127.0.0.1:{management}"
        self.metrics = f"127.0.0.1:{metrics}"
        container = new_container(deployed_image("rabbitmq"), {5672: amqp, 15672: management, 15692: metrics})
        container.with_copy_into_container(_deployed_configuration().encode(), "/etc/rabbitmq/conf.d/20-ingest.conf")
        container.with_copy_into_container(_DEPLOYED / "enabled_plugins", "/etc/rabbitmq/enabled_plugins")
        self.start_container(container, self._answers, "RabbitMQ in Docker", 120)
        self.origin = f"Docker, RabbitMQ {self._version()}"

    def _answers(self) -> bool:
        # RabbitMQ 4.3 answers the first with 200 while the second still fails.
        return bool(self.api("GET", "aliveness-test/%2F")["status"] == "ok") and bool(self.api("GET", "overview"))


def _deployed_configuration() -> str:
    """Return the configuration of deploy/, which here requires less free disk space."""
    return (_DEPLOYED / "rabbitmq.conf").read_text().replace("2GB", "50MB")
