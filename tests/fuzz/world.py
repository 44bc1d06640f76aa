"""A shim and a worker, real processes, on RabbitMQ and Aerospike with deploy/rabbitmq's users and permissions."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.usage import rss
from tests.e2e.processes import Ingest, run_ingest, wait_ready
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import free_ports

_DEPLOY = Path(__file__).parents[2] / "deploy/rabbitmq"
CUSTOMER = "acme"
OTHER = "other"
DEFECTS = ("Traceback", "request_failed", "attempt_crashed")
"""What the log of a process says when it meets a defect of ours."""


class World:
    """A context manager. `acme` and `other` are customers, each with an API key and a producer's AMQP user."""

    def __init__(
        self, rabbitmq: RabbitServer, aerospike: AerospikeServer, env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ingest-fuzz-")
        self.directory = Path(self._folder.name)
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
            # An Aerospike may have served another world, in which the customer had a quota.
            self.ingest("customer", "set", name, "--quota", "unlimited", "--no-strict")
            self.keys[name] = self.ingest("key", "create", name)["api_key"]
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.shim = Ingest("serve", "--port", str(self.port), directory=self.directory, env=self.env)
        self.worker = Ingest("work", directory=self.directory, env=self.env)
        wait_ready(self.url)
        self.worker.wait_for("worker_started")

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.shim, self.worker):
            process.process.kill()
            process.process.wait()
        self._rabbitmq.drop_vhost(self.admin_url)
        self._folder.cleanup()

    def ingest(self, *arguments: str) -> Any:
        """A command's JSON output."""
        done = run_ingest(*arguments, "--json", env=self.env, directory=self.directory)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def memory(self) -> dict[str, float]:
        """Resident MB of each process."""
        processes = {"shim": self.shim, "worker": self.worker}
        return {name: round(rss(each.process.pid, peak=False), 1) for name, each in processes.items()}

    def defects(self) -> list[str]:
        """Lines of the logs that tell of a defect, and processes that have ended."""
        found = []
        for name, process in (("shim", self.shim), ("worker", self.worker)):
            if process.process.poll() is not None:
                found.append(f"{name} has ended with {process.process.returncode}")
            found += [
                f"{name}: {line[:500]}" for line in process.text().splitlines() if any(d in line for d in DEFECTS)
            ]
        return found

    def _provision(self, vhost: str) -> None:
        passwords = self.directory / "passwords"
        passwords.mkdir()
        for user in ("ingest", "operator", CUSTOMER, OTHER):
            (passwords / user).write_text(f"password-of-{user}")
        shipped = json.loads((_DEPLOY / "users.json").read_text())
        another = {
            section: [
                {name: OTHER if value == CUSTOMER else value for name, value in each.items()}
                for each in objects
                if CUSTOMER in each.values()
            ]
            for section, objects in shipped.items()
        }
        (self.directory / "users.json").write_text(json.dumps(another))
        files = [str(_DEPLOY / "users.json"), str(self.directory / "users.json")]
        subprocess.run(
            [sys.executable, str(_DEPLOY / "provision.py"), "--passwords", str(passwords), "--vhost", vhost, *files],
            env={**os.environ, "RABBITMQ_ADMIN_URL": self._rabbitmq.management_url.replace("//", "//guest:guest@")},
            check=True,
            capture_output=True,
            timeout=60,
        )
