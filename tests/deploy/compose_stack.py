"""The compose file on a real Docker engine: a project with a name, an image, ports and passwords of its own."""

import functools
import json
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any, Final

import httpx

from tests.deploy.files import DEPLOY, load_yaml
from tests.e2e.contract import TASK
from tests.servers.docker import deployed_image, docker_has
from tests.servers.process import free_ports, wait_until

SERVICES: Final = ("shim", "worker")
"""The services with a health check."""
STARTED: Final = (*SERVICES, "trim")
"""What `up` starts, with its dependencies; Prometheus and Grafana are not needed."""
TRIM_KEEP: Final = "64KiB"
"""What the service `trim` of the tests leaves to the dead letters of one customer."""


@functools.cache
def missing() -> str:
    """Return what keeps the tests from running; empty if nothing does."""
    (base,) = re.findall(r"^ARG BASE=(\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    if shutil.which("docker") is None:
        return "docker is not on PATH"
    version = subprocess.run(["docker", "compose", "version", "--short"], capture_output=True, text=True, check=False)
    numbers = tuple(map(int, re.findall(r"\d+", version.stdout)[:2]))
    if numbers < (2, 24):
        return "`docker compose` 2.24 or newer is missing (`!override`)"
    images = [image for image in (base, *map(deployed_image, ("rabbitmq", "aerospike"))) if not docker_has(image)]
    return f"no Docker engine answers that has {', '.join(images)}" if images else ""


class ComposeStack:
    """A compose project. `build` and `up` first; `down` removes everything.

    Args:
        directory: for the override file.
    """

    def __init__(self, directory: Path) -> None:
        self.project: Final = f"ingest-test-{uuid.uuid4().hex[:8]}"
        self.image: Final = self.project
        shim, rabbitmq = free_ports(2)
        self.url: Final = f"http://127.0.0.1:{shim}"
        self._override: Final = directory / "override.yml"
        images = "".join(f"  {name}: {{ image: {self.image} }}\n" for name in ("topology", "worker", "operator"))
        self._override.write_text(
            f"services:\n{images}"
            f'  shim: {{ image: {self.image}, ports: !override ["127.0.0.1:{shim}:8080"] }}\n'
            f"  trim: {{ image: {self.image}, command: [dlq, trim, --keep, {TRIM_KEEP}, --every, 2s] }}\n"
            f'  rabbitmq: {{ ports: !override ["127.0.0.1:{rabbitmq}:15672"] }}\n'
        )
        secrets = load_yaml(DEPLOY / "docker-compose.yml")["secrets"].values()
        names = ["RABBITMQ_ADMIN_PASSWORD", "INGEST_CONSOLE_TOKEN", *(secret["environment"] for secret in secrets)]
        self._env: Final = {**os.environ, **{name: uuid.uuid4().hex for name in names}}
        self._key = ""
        self._management: Final = f"http://127.0.0.1:{rabbitmq}"

    def compose(self, *arguments: str, seconds: float = 240) -> str:
        """Run `docker compose`; return its output. Raises AssertionError with the output if it fails."""
        files = ["-f", str(DEPLOY / "docker-compose.yml"), "-f", str(self._override)]
        command = ["docker", "compose", "--project-name", self.project, *files, *arguments]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=seconds, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def ingest(self, *arguments: str) -> str:
        """Run a command of `ingest` in the service `operator`; return its output."""
        return self.compose("run", "--rm", "-T", "operator", *arguments)

    def containers(self, service: str) -> list[dict[str, Any]]:
        """Return what `docker inspect` says about each container of a service."""
        ids = self.compose("ps", "--all", "--quiet", service).split()
        described: list[dict[str, Any]] = json.loads(docker("inspect", *ids))
        return described

    def is_healthy(self, service: str) -> bool:
        return all(container["State"]["Health"]["Status"] == "healthy" for container in self.containers(service))

    def reaches(self, network: str, host: str, port: int) -> bool:
        """Return whether a container that is only in a network of the project can connect."""
        script = (
            "import socket\n"
            f"try: socket.create_connection(('{host}', {port}), 3); print('connected')\n"
            "except OSError: print('failed')"
        )
        network = f"{self.project}_{network}"
        output = docker("run", "--rm", "--network", network, "--entrypoint", "python", self.image, "-c", script)
        return {"connected": True, "failed": False}[output.strip()]

    def start(self) -> None:
        """Build, start, and add a customer."""
        self.compose("build", seconds=900)
        self.compose("up", "--detach", *STARTED)
        self.ingest("customer", "add", "acme")
        self._key = json.loads(self.ingest("key", "create", "acme", "--json"))["api_key"]

    def submit(self, key: str) -> int:
        """Submit a task; return the status code."""
        headers = {"Authorization": f"Bearer {self._key}"}
        task = {**TASK, "idempotency_key": key}
        return httpx.post(f"{self.url}/v1/tasks", json=task, headers=headers, timeout=15).status_code

    def wait_until_accepted(self, name: str) -> None:
        """Submit new tasks until one is accepted. Raises TimeoutError."""
        wait_until(lambda: self.submit(uuid.uuid4().hex) == 202, name)

    def reject(self, count: int, size: int) -> None:
        """Publish submissions that become dead letters, with bodies of so many bytes. Raises httpx.HTTPError."""
        message = {
            "routing_key": "task.submitted.acme",
            "payload": "x" * size,
            "payload_encoding": "string",
        }
        user = ("admin", self._env["RABBITMQ_ADMIN_PASSWORD"])
        url = f"{self._management}/api/exchanges/%2F/asg.submissions/publish"
        for _ in range(count):
            properties = {"delivery_mode": 2, "message_id": uuid.uuid4().hex}
            response = httpx.post(url, json={**message, "properties": properties}, auth=user, timeout=30)
            assert response.raise_for_status().json() == {"routed": True}

    def trimmed(self) -> int:
        """Return how many dead letters have no body any more."""
        return sum("trimmed" in json.loads(line) for line in self.ingest("dlq", "export", "-").splitlines())

    def down(self) -> None:
        """Remove the containers, networks, volumes and the image."""
        self.compose("--profile", "operator", "down", "--volumes", "--timeout", "1")
        docker("image", "rm", "--force", self.image)


def docker(*arguments: str) -> str:
    """Run `docker`; return its output. Raises subprocess.CalledProcessError."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout
