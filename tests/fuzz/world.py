"""A real shim and a real worker on RabbitMQ and Aerospike, with the users and permissions of deploy/rabbitmq."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.usage import rss
from tests.deploy.provisioning import RABBITMQ, run_provision
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports

CUSTOMER = "acme"
OTHER = "other"
DEFECTS = ("Traceback", "request_failed", "attempt_crashed")
"""Texts in the log of a process that show a defect of the service."""


class World:
    """A context manager that runs a shim and a worker.

    The customers `acme` and `other` each have an API key in `keys` and the URL of an AMQP user in `producer_urls`.
    `module` is what runs in place of `ingest` as shim and worker.
    """

    def __init__(
        self,
        rabbitmq: RabbitServer,
        aerospike: AerospikeServer,
        env: Mapping[str, str] | None = None,
        module: str = "ingest",
    ) -> None:
        self._temporary_directory = tempfile.TemporaryDirectory(prefix="ingest-fuzz-")
        self.directory = Path(self._temporary_directory.name)
        self._rabbitmq = rabbitmq
        self.admin_url = rabbitmq.new_vhost()
        self._provision(urlsplit(self.admin_url).path[1:])
        host = self.admin_url.partition("@")[2]
        self.producer_urls = {name: f"amqp://{name}:password-of-{name}@{host}" for name in (CUSTOMER, OTHER)}
        management = rabbitmq.management_url.replace("//", "//operator:password-of-operator@")
        self.env = {
            "INGEST_BROKER_URL": f"amqp://ingest:password-of-ingest@{host}",
            "INGEST_STORE_URL": aerospike.url,
            "INGEST_MANAGEMENT_URL": management,
            **(env or {}),
        }
        run_ingest("topology", "apply", env=self.env, directory=self.directory)
        self.keys = {}
        for name in (CUSTOMER, OTHER):
            run_ingest("customer", "add", name, env=self.env, directory=self.directory)
            # Another world may have given the customer a quota in the same Aerospike.
            self.ingest("customer", "set", name, "--quota", "unlimited", "--no-strict")
            self.keys[name] = self.ingest("key", "create", name)["api_key"]
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.shim = Ingest("serve", "--port", str(self.port), directory=self.directory, env=self.env, module=module)
        self.worker = Ingest("work", directory=self.directory, env=self.env, module=module)
        wait_ready(self.url)
        self.worker.wait_for("worker_started")

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.shim, self.worker):
            process.process.kill()
            process.process.wait()
        self._rabbitmq.drop_vhost(self.admin_url)
        self._temporary_directory.cleanup()

    def ingest(self, *arguments: str) -> Any:
        """Run an `ingest` command that must succeed, and return its JSON output."""
        completed = run_ingest(*arguments, "--json", env=self.env, directory=self.directory)
        assert completed.returncode == 0, completed.stderr
        return json.loads(completed.stdout)

    def memory(self) -> dict[str, float]:
        """Return the resident memory of each process in MB."""
        processes = {"shim": self.shim, "worker": self.worker}
        return {name: round(rss(process.process.pid, peak=False), 1) for name, process in processes.items()}

    def defects(self) -> list[str]:
        """Return the lines of the logs that show a defect, and the processes that have ended."""
        defects = []
        for name, process in (("shim", self.shim), ("worker", self.worker)):
            if process.process.poll() is not None:
                defects.append(f"{name} has ended with exit code {process.process.returncode}")
            for line in process.text().splitlines():
                if any(defect in line for defect in DEFECTS):
                    defects.append(f"{name}: {line[:500]}")
        return defects

    def _provision(self, vhost: str) -> None:
        passwords = self.directory / "passwords"
        passwords.mkdir()
        for user in ("ingest", "operator", CUSTOMER, OTHER):
            (passwords / user).write_text(f"password-of-{user}")
        shipped = json.loads((RABBITMQ / "users.json").read_text())
        # The shipped file has one producer, `acme`; a copy of its definitions makes the producer `other`.
        second_producer = {
            section: [
                {name: OTHER if value == CUSTOMER else value for name, value in definition.items()}
                for definition in definitions
                if CUSTOMER in definition.values()
            ]
            for section, definitions in shipped.items()
        }
        (self.directory / "users.json").write_text(json.dumps(second_producer))
        run_provision(self._rabbitmq, passwords, vhost, self.directory / "users.json").check_returncode()
