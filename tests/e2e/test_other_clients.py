"""The programs in deploy/producers.md for pika and Node submit tasks and receive their events, with a real worker."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.deploy.files import DEPLOY
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import AerospikeServer, RabbitServer
from tests.servers.process import wait_until

PAGE = (DEPLOY / "producers.md").read_text()
LONGEST = 15
"""Lines of a program, without blank ones and comments."""


def program(name: str) -> str:
    """Return a program of the page; its first line is a comment with its name."""
    (code,) = re.findall(rf"^```\w+\n(?:#|//) {re.escape(name)}\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(code)


class Clients:
    """A customer with a user and queues, and a directory for its programs."""

    def __init__(self, directory: Path, url: str, store_url: str, management_url: str) -> None:
        self.customer = f"acme{uuid4().hex[:8]}"
        self.directory = directory
        self._url = url
        api = management_url.replace("//", "//guest:guest@")
        self.env = {"INGEST_BROKER_URL": url, "INGEST_STORE_URL": store_url, "INGEST_MANAGEMENT_URL": api}
        self.run("topology", "apply")
        self.run("customer", "add", self.customer)
        password = json.loads(self.run("producer", "add", self.customer, "--json"))["password"]
        self.amqp_url = f"amqp://{self.customer}:{quote(password)}@{url.partition('@')[2]}"

    def run(self, *arguments: str) -> str:
        done = run_ingest(*arguments, env=self.env, directory=self.directory)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, interpreter: str, name: str, *, url: str, key: str = "") -> subprocess.Popen[str]:
        code = program(name).replace("submitted.acme", f"submitted.{self.customer}").replace("order-10042-line-3", key)
        (self.directory / name).write_text(code)
        environment = {"AMQP_URL": url, "PATH": "/usr/bin:/bin"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [interpreter, name], cwd=self.directory, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    def submit(self, interpreter: str, name: str, key: str) -> tuple[int, str]:
        """Run a producer; return its exit code and its errors."""
        process = self.start(interpreter, name, url=self.amqp_url, key=key)
        _, errors = process.communicate(timeout=30)
        return process.returncode, errors

    def receive(self, interpreter: str, name: str, count: int) -> list[str]:
        """Run a consumer until it has printed so many lines and acknowledged everything; return the lines."""
        process = self.start(interpreter, name, url=self._url)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(count)]
        wait_until(lambda: self.depth("consensus.tasks") == 0, "an empty queue", 30)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        return lines

    def depth(self, queue: str) -> int:
        queues = json.loads(self.run("status", "--json"))["broker"]["queues"]
        return int(next(row["ready"] + row["unacked"] for row in queues if row["name"] == queue))


@pytest.fixture
def clients(rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path) -> Iterator[Clients]:
    clients = Clients(tmp_path, rabbitmq_url, aerospike.url, rabbitmq.management_url)
    yield clients
    rabbitmq.api("DELETE", f"users/{clients.customer}")


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with amqplib. Skips if Node or the package is unavailable."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not on PATH")
    directory = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "amqplib@2"]
    try:
        subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install amqplib: {str(error.stderr or error)[-200:]}")
    return directory / "node_modules"


@pytest.mark.parametrize("name", ["producer.py", "consumer.py", "producer.mjs", "consumer.mjs"])
def test_program_is_short(name: str) -> None:
    lines = [line for line in program(name).splitlines() if line.strip() and not line.strip().startswith(("#", "//"))]
    assert len(lines) <= LONGEST


def check(clients: Clients, interpreter: str, suffix: str) -> None:
    """Submit two tasks, one of them twice, receive their events, and see that nothing is left."""
    producer, consumer = f"producer.{suffix}", f"consumer.{suffix}"
    with Ingest("work", directory=clients.directory, env=clients.env) as work:
        work.wait_for("own_queues_consumed")
        for key in ("k1", "k2", "k1"):
            assert clients.submit(interpreter, producer, key) == (0, "")
        lines = clients.receive(interpreter, consumer, 2)
    assert len({line.split()[1] for line in lines}) == 2
    assert all(event_id.startswith(f"{task_id}:accepted:") for event_id, task_id in map(str.split, lines))


def test_programs_for_pika_submit_and_receive(clients: Clients) -> None:
    check(clients, sys.executable, "py")


def test_programs_for_node_submit_and_receive(clients: Clients, node_modules: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_modules)
    check(clients, str(shutil.which("node")), "mjs")


@pytest.mark.parametrize("suffix", ["py", "mjs"])
def test_producer_fails_if_no_queue_takes_its_message(
    clients: Clients, request: pytest.FixtureRequest, rabbitmq: RabbitServer, tmp_path: Path, suffix: str
) -> None:
    if suffix == "mjs":
        (tmp_path / "node_modules").symlink_to(request.getfixturevalue("node_modules"))
    vhost = clients.amqp_url.rpartition("/")[2]
    for queue in ("ingest.tasks", f"ingest.direct.{clients.customer}.tasks"):
        rabbitmq.api("DELETE", f"queues/{vhost}/{queue}")
    interpreter = sys.executable if suffix == "py" else str(shutil.which("node"))
    code, errors = clients.submit(interpreter, f"producer.{suffix}", "k")
    assert (code, "UnroutableError" in errors or "no queue takes it" in errors) == (1, True), errors
