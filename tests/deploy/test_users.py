"""The users of deploy/rabbitmq can do what they need on a real RabbitMQ, and nothing else."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest
from aiormq.exceptions import AMQPError, ChannelAccessRefused, ProbableAuthenticationError

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from ingest.domain.dead_letters import dead_letter
from ingest.domain.errors import InvalidSubmission, Reason
from ingest.domain.messages import PublishOutcome
from ingest.worker.worker import OUTAGE_HOLD
from tests.deploy.provisioning import RABBITMQ, USERS, run_provision
from tests.servers import RabbitServer
from tests.servers.process import wait_until
from tests.support.deliveries import delivery


class User:
    """One user's connection. Each operation opens a new channel, since a refused one closes its channel."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self._url = f"amqp://{name}:password%20of%20{name}@{address}"

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
async def user(request: pytest.FixtureRequest, broker_address: str) -> AsyncIterator[User]:
    user = User(request.param, broker_address)
    await user.connect()
    yield user
    await user.close()


async def test_producer_has_a_limited_number_of_connections_and_channels(
    rabbitmq: RabbitServer, broker_address: str
) -> None:
    """The definitions set them, on every version. The service's own users have no limits."""
    (limits,) = [entry for entry in rabbitmq.api("GET", "user-limits") if entry["user"] in USERS]
    assert limits == {"user": "acme", "value": {"max-connections": 20, "max-channels": 200}}
    users = [User("acme", broker_address) for _ in range(20)]
    for user in users:
        await user.connect()
    with pytest.raises(AMQPError):
        await User("acme", broker_address).connect()
    for user in users:
        await user.close()


@pytest.mark.parametrize("user", ["acme"], indirect=True)
async def test_producer_publishes_tasks_and_batches_with_its_own_routing_keys(user: User) -> None:
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
async def test_broker_refuses_every_other_publish_of_a_producer(user: User, exchange: str, routing_key: str) -> None:
    with pytest.raises(ChannelAccessRefused):
        await user.publish(exchange, routing_key)


@pytest.mark.parametrize(
    ("user", "own_queues"),
    [
        ("acme", ()),
        ("consensus", ("consensus.tasks", "consensus.tasks.parked")),
        ("webhooks", ("webhook.dispatch", "webhook.dispatch.parked")),
        ("operator", ()),
        ("monitoring", ()),
    ],
    indirect=["user"],
)
async def test_user_reads_only_its_own_queues_and_declares_none(user: User, own_queues: tuple[str, ...]) -> None:
    for queue in ("ingest.tasks", "ingest.batches", "ingest.dead", *topology.EVENT_QUEUES):
        if queue in own_queues:
            await user.get(queue)
        else:
            with pytest.raises(ChannelAccessRefused):
                await user.get(queue)
    with pytest.raises(ChannelAccessRefused):
        await user.declare("ingest.mine")


@pytest.mark.parametrize("user", ["consensus", "webhooks", "monitoring", "operator"], indirect=True)
async def test_broker_refuses_every_publish_of_a_user_that_only_reads(user: User) -> None:
    for exchange in ("asg.submissions", "asg.events", ""):
        with pytest.raises(ChannelAccessRefused):
            await user.publish(exchange, "consensus.tasks")


def test_permissions_suffice_for_topology_apply_and_check(broker_address: str, rabbitmq: RabbitServer) -> None:
    """User `ingest` declares the queues, user `operator` sets the policies."""
    api = urlsplit(rabbitmq.management_url)
    environment = {
        **os.environ,
        "INGEST_BROKER_URL": f"amqp://ingest:password%20of%20ingest@{broker_address}",
        "INGEST_MANAGEMENT_URL": f"http://operator:password%20of%20operator@{api.netloc}",
    }

    def run(verb: str) -> str:
        command = [sys.executable, "-m", "ingest", "topology", verb]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout

    assert "policies are set" in run("apply")
    # The management API shows a change only after some time.
    wait_until(lambda: run("check") == "the broker matches the topology\n", "a matching topology", 20)


def test_permissions_suffice_for_trimming_dead_letters(broker_address: str, rabbitmq: RabbitServer) -> None:
    """User `ingest` reads and publishes them; user `monitoring` sees the policy and the size of the queue."""
    api = urlsplit(rabbitmq.management_url)
    environment = {
        **os.environ,
        "INGEST_BROKER_URL": f"amqp://ingest:password%20of%20ingest@{broker_address}",
        "INGEST_MANAGEMENT_URL": f"http://monitoring:password%20of%20monitoring@{api.netloc}",
    }
    rejected = delivery(body=bytes(20_000), user_id="acme")
    letter = dead_letter(rejected, InvalidSubmission(Reason.INVALID, "why"), "2026-04-09T12:00:00Z")

    async def publish() -> None:
        broker = RabbitBroker(environment["INGEST_BROKER_URL"])
        publisher = await broker.publisher()
        assert await publisher.publish([letter]) == [PublishOutcome.CONFIRMED]
        await broker.close()

    asyncio.run(publish())
    command = [sys.executable, "-m", "ingest", "dlq", "trim", "--keep", "1KiB"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.startswith("acme: trimmed 1, ")) == (0, True), done.stderr


def test_provisioning_leaves_out_and_reports_users_without_a_password_file(
    rabbitmq: RabbitServer, tmp_path: Path
) -> None:
    url = rabbitmq.new_vhost()
    completed = run_provision(rabbitmq, tmp_path, urlsplit(url).path[1:])
    permissions = rabbitmq.api("GET", f"vhosts/{urlsplit(url).path[1:]}/permissions")
    rabbitmq.drop_vhost(url)
    assert completed.returncode == 0, completed.stderr
    assert set(re.findall(r"user (\w+) left out", completed.stdout)) == set(USERS)
    assert not {permission["user"] for permission in permissions} & set(USERS)


async def test_provisioning_again_replaces_the_password(
    rabbitmq: RabbitServer, broker_address: str, tmp_path: Path
) -> None:
    user = User("consensus", broker_address)
    await user.connect()
    await user.close()
    (tmp_path / "consensus").write_text("another")
    completed = run_provision(rabbitmq, tmp_path, urlsplit(f"amqp://{broker_address}").path[1:])
    assert completed.returncode == 0, completed.stderr
    with pytest.raises(ProbableAuthenticationError):
        await user.connect()


def test_provisioning_refuses_an_empty_password_file(rabbitmq: RabbitServer, tmp_path: Path) -> None:
    (tmp_path / "ingest").write_text("\n")
    completed = run_provision(rabbitmq, tmp_path, "/")
    assert completed.returncode == 1
    assert "must hold the password of user ingest" in completed.stderr


def test_users_file_contains_neither_passwords_nor_hashes() -> None:
    users = json.loads((RABBITMQ / "users.json").read_text())["users"]
    assert {user["name"] for user in users} == set(USERS)
    assert {user["password_hash"] for user in users} == {""}
    assert not any("password" in user for user in users)


def test_settings_of_the_shipped_configuration_are_effective(rabbitmq: RabbitServer) -> None:
    """The private node of the tests uses deploy/rabbitmq/rabbitmq.conf."""
    if not rabbitmq.has_ctl:
        pytest.skip("RabbitMQ is not a private node")
    for name in re.findall(r"^(\w+)[.\w]* =", (RABBITMQ / "rabbitmq.conf").read_text(), re.MULTILINE):
        value = rabbitmq.ctl("eval", f"application:get_env(rabbit, {name}).")
        assert value.startswith("{ok,"), name
    assert rabbitmq.ctl("eval", "application:get_env(rabbit, consumer_timeout).").strip() == "{ok,3600000}"


def test_worker_may_read_nothing_for_as_long_as_it_holds_deliveries_through_an_outage(rabbitmq: RabbitServer) -> None:
    """By default RabbitMQ closes the connection after 30 s, and all deliveries return. The others are its defaults."""
    if not rabbitmq.has_ctl:
        pytest.skip("RabbitMQ is not a private node")
    value = rabbitmq.ctl("eval", "lists:sort(element(2, application:get_env(rabbit, tcp_listen_options))).")
    options = dict(re.findall(r"\{(\w+),(\{.*?\}|\w+)\}", value))
    assert int(options.pop("send_timeout")) > OUTAGE_HOLD * 1000
    assert options == {"backlog": "128", "nodelay": "true", "linger": "{true,0}", "exit_on_close": "false"}
