"""deploy/rabbitmq's users, imported into a real RabbitMQ, can do what they are for and nothing else."""

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused, ProbableAuthenticationError

from tests.servers import RabbitServer
from tests.servers.process import wait_until

RABBITMQ = Path(__file__).parents[2] / "deploy/rabbitmq"
USERS = ("ingest", "operator", "monitoring", "consensus", "webhooks", "acme")


@pytest.fixture(scope="module")
def provisioned(rabbitmq: RabbitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a virtual host that `provision.py` has filled, without user and password."""
    passwords = tmp_path_factory.mktemp("passwords")
    for user in USERS:
        (passwords / user).write_text(f"password of {user}\n")
    url = rabbitmq.new_vhost()
    done = provision(rabbitmq, passwords, urlsplit(url).path[1:])
    assert done.returncode == 0, done.stderr
    yield url.partition("@")[2]
    for user in USERS:
        rabbitmq.api("DELETE", f"users/{user}")
    rabbitmq.drop_vhost(url)


def provision(rabbitmq: RabbitServer, passwords: Path, vhost: str) -> "subprocess.CompletedProcess[str]":
    admin = urlsplit(rabbitmq.url)
    api = urlsplit(rabbitmq.management_url)
    files = [str(RABBITMQ / "definitions.json"), str(RABBITMQ / "users.json")]
    return subprocess.run(
        [sys.executable, str(RABBITMQ / "provision.py"), "--passwords", str(passwords), "--vhost", vhost, *files],
        env={**os.environ, "RABBITMQ_ADMIN_URL": f"{api.scheme}://{admin.username}:{admin.password}@{api.netloc}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class User:
    """One user's connection; a channel is opened anew for each thing it tries."""

    def __init__(self, name: str, at: str) -> None:
        self.name = name
        self._url = f"amqp://{name}:password%20of%20{name}@{at}"

    async def connect(self) -> None:
        self._connection = await aio_pika.connect(self._url)

    async def close(self) -> None:
        await self._connection.close()

    async def publish(self, exchange: str, routing_key: str) -> None:
        async with self._connection.channel() as channel:
            target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
            await target.publish(aio_pika.Message(b"{}", message_id="m", user_id=self.name), routing_key)

    async def get(self, queue: str) -> None:
        async with self._connection.channel() as channel:
            await (await channel.get_queue(queue, ensure=False)).get(fail=False)

    async def declare(self, queue: str) -> None:
        async with self._connection.channel() as channel:
            await channel.declare_queue(queue, durable=True)


@pytest.fixture
async def user(request: pytest.FixtureRequest, provisioned: str) -> AsyncIterator[User]:
    user = User(request.param, provisioned)
    await user.connect()
    yield user
    await user.close()


@pytest.mark.parametrize("user", ["acme"], indirect=True)
async def test_a_producer_publishes_under_its_own_name(user: User) -> None:
    """Tasks and batches, confirmed."""
    await user.publish("asg.submissions", "task.submitted.acme")
    await user.publish("asg.submissions", "batch.submitted.acme")


@pytest.mark.parametrize("user", ["acme"], indirect=True)
@pytest.mark.parametrize(
    ("exchange", "routing_key"),
    [
        ("asg.submissions", "task.submitted.other"),
        ("asg.submissions", "task.submitted.acme.x"),
        ("asg.submissions", "xtask.submitted.acme"),
        ("asg.submissions", "task_submitted_acme"),
        ("asg.events", "task.accepted.moderation.none"),
        ("asg.dead", "task.submitted.acme"),
        ("", "ingest.tasks"),
    ],
)
async def test_a_producer_publishes_nothing_else(user: User, exchange: str, routing_key: str) -> None:
    """Another's routing key, another exchange, and a queue by the default exchange are refused by the broker."""
    with pytest.raises(ChannelAccessRefused):
        await user.publish(exchange, routing_key)


@pytest.mark.parametrize(
    ("user", "own"),
    [("acme", ()), ("consensus", ("consensus.tasks",)), ("webhooks", ("webhook.dispatch",))],
    indirect=["user"],
)
async def test_each_reads_only_its_own_queue(user: User, own: tuple[str, ...]) -> None:
    """And nobody but the service makes queues."""
    for queue in ("ingest.tasks", "ingest.batches", "consensus.tasks", "webhook.dispatch", "ingest.dead"):
        if queue in own:
            await user.get(queue)
        else:
            with pytest.raises(ChannelAccessRefused):
                await user.get(queue)
    with pytest.raises(ChannelAccessRefused):
        await user.declare("ingest.mine")


@pytest.mark.parametrize("user", ["consensus", "webhooks", "monitoring", "operator"], indirect=True)
async def test_those_who_read_publish_nothing(user: User) -> None:
    """Neither submissions nor events."""
    for exchange in ("asg.submissions", "asg.events", ""):
        with pytest.raises(ChannelAccessRefused):
            await user.publish(exchange, "consensus.tasks")


def test_the_service_runs_with_its_permissions(provisioned: str, rabbitmq: RabbitServer) -> None:
    """Topology apply and check find that the broker matches: queues with user `ingest`, policies with `operator`."""
    api = urlsplit(rabbitmq.management_url)
    environment = {
        **os.environ,
        "INGEST_BROKER_URL": f"amqp://ingest:password%20of%20ingest@{provisioned}",
        "INGEST_MANAGEMENT_URL": f"http://operator:password%20of%20operator@{api.netloc}",
    }

    def run(verb: str) -> str:
        command = [sys.executable, "-m", "ingest", "topology", verb]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout

    assert "policies are set" in run("apply")
    # The management API's statistics are late.
    wait_until(lambda: run("check") == "the broker matches the topology\n", "the policies", 20)


async def test_wrong_passwords_and_users_left_out(rabbitmq: RabbitServer, provisioned: str, tmp_path: Path) -> None:
    """A user without a password file is not made, which is said; nobody logs in with another password."""
    (tmp_path / "consensus").write_text("another")
    url = rabbitmq.new_vhost()
    done = provision(rabbitmq, tmp_path, urlsplit(url).path[1:])
    assert "user webhooks left out" in done.stdout
    with pytest.raises(ProbableAuthenticationError):
        await User("consensus", provisioned).connect()
    rabbitmq.drop_vhost(url)


def test_an_empty_password_file_is_refused(rabbitmq: RabbitServer, tmp_path: Path) -> None:
    """Rather than a user that anybody can be."""
    (tmp_path / "ingest").write_text("\n")
    done = provision(rabbitmq, tmp_path, "/")
    assert done.returncode == 1
    assert "must hold the password of user ingest" in done.stderr


def test_no_password_is_in_the_file() -> None:
    """Hashes come from files that are not in the repository."""
    users = json.loads((RABBITMQ / "users.json").read_text())["users"]
    assert {user["name"] for user in users} == set(USERS)
    assert {user["password_hash"] for user in users} == {""}
    assert not any("password" in user for user in users)


def test_the_broker_has_the_shipped_configuration(rabbitmq: RabbitServer) -> None:
    """The private node of all tests runs on deploy/'s rabbitmq.conf; what it sets is in force."""
    if not rabbitmq.controllable:
        pytest.skip("RabbitMQ is not a private node")
    for name in re.findall(r"^(\w+)[.\w]* =", (RABBITMQ / "rabbitmq.conf").read_text(), re.MULTILINE):
        asked = rabbitmq.ctl("eval", f"application:get_env(rabbit, {name}).")
        assert asked.startswith("{ok,"), name
    assert rabbitmq.ctl("eval", "application:get_env(rabbit, consumer_timeout).").strip() == "{ok,3600000}"
