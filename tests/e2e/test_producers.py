"""`ingest producer`: the user and queues of one direct producer, with the real commands, RabbitMQ and Aerospike."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aio_pika
import pytest
from aiormq.exceptions import AMQPError, ProbableAuthenticationError

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.topology import producer_queues
from tests.e2e.processes import Ingest, run_ingest
from tests.servers import AerospikeServer, RabbitServer


class Operator:
    """Runs commands about a customer that no other test uses."""

    def __init__(self, rabbitmq: RabbitServer, url: str, store_url: str, directory: Path) -> None:
        self.customer = f"acme{uuid4().hex[:8]}"
        self.url = url
        self.directory = directory
        self.without_management = {"INGEST_BROKER_URL": url, "INGEST_STORE_URL": store_url}
        management_url = rabbitmq.management_url.replace("//", "//guest:guest@")
        self.env = self.without_management | {"INGEST_MANAGEMENT_URL": management_url}

    async def run(self, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        """Return exit code and output."""
        done = await asyncio.to_thread(
            run_ingest, *arguments, env=self.env if env is None else env, directory=self.directory
        )
        return done.returncode, done.stdout + done.stderr

    async def json(self, *arguments: str) -> Any:
        code, output = await self.run(*arguments, "--json")
        assert code == 0, output
        return json.loads(output)

    async def fails(self, *arguments: str, because: str, env: dict[str, str] | None = None) -> None:
        code, output = await self.run(*arguments, env=env)
        assert (code, because in output) == (2, True), output

    async def connect(self, password: str) -> aio_pika.abc.AbstractConnection:
        """Connect as the customer's user."""
        return await aio_pika.connect(f"amqp://{self.customer}:{quote(password)}@{self.url.partition('@')[2]}")


@pytest.fixture
async def operator(
    rabbitmq: RabbitServer, rabbitmq_url: str, aerospike: AerospikeServer, tmp_path: Path
) -> AsyncIterator[Operator]:
    operator = Operator(rabbitmq, rabbitmq_url, aerospike.url, tmp_path)
    yield operator
    if operator.customer in {user["name"] for user in rabbitmq.api("GET", "users")}:
        rabbitmq.api("DELETE", f"users/{operator.customer}")


async def test_mistakes_are_answered_with_what_to_do(operator: Operator) -> None:
    add = ("producer", "add", operator.customer)
    await operator.fails(*add, because="`ingest producer add` needs RabbitMQ", env={})
    await operator.fails(*add, because="needs INGEST_MANAGEMENT_URL", env=operator.without_management)
    await operator.fails(*add, because=f"there is no customer {operator.customer}")
    await operator.run("customer", "add", operator.customer)
    await operator.fails(*add, because="run `ingest topology apply` first")
    for verb in ("rotate", "remove"):
        await operator.fails("producer", verb, operator.customer, because="ingest producer")
    await operator.run("customer", "add", "guest")
    await operator.fails("producer", "add", "guest", because="RabbitMQ's user guest is not one of a producer")


async def test_producer_gets_a_user_and_queues_and_loses_them_again(operator: Operator) -> None:
    customer = operator.customer
    assert (await operator.run("topology", "apply"))[0] == 0
    assert (await operator.run("customer", "add", customer, "--weight", "2"))[0] == 0
    created = await operator.json("producer", "add", customer)
    queues = [queue.name for queue in producer_queues(customer)]
    assert [*created.pop("queues"), created.pop("feedback")] == queues
    first = created.pop("password")
    assert created == {"user": customer, "weight": 2.0}
    code, output = await operator.run("producer", "add", customer)
    assert (code, "password " in output, "the user existed and keeps its password" in output) == (0, False, True)
    second = (await operator.json("producer", "rotate", customer))["password"]
    with pytest.raises(ProbableAuthenticationError):
        await operator.connect(first)
    assert (await operator.run("topology", "check"))[0] == 0
    status = await operator.json("status")
    assert set(queues[:2]) < {queue["name"] for queue in status["broker"]["queues"]}
    assert "ingest.direct.*" in (await operator.run("status", "--once"))[1]
    with Ingest("work", directory=operator.directory, env=operator.env) as work:
        work.wait_for("own_queues_consumed")
        connection = await operator.connect(second)
        await _is_told_of_a_rejection(connection, customer)
        code, output = await operator.run("producer", "remove", customer)
        assert (code, f"{customer} is no longer a producer\n1 report to {customer}" in output) == (0, True), output
        with pytest.raises((AMQPError, RuntimeError)):
            await connection.channel()
    with pytest.raises(ProbableAuthenticationError):
        await operator.connect(second)
    assert list((await RabbitBroker(operator.url).inspect(queues)).queues.values()) == [None, None, None]
    await operator.fails("producer", "remove", customer, because=f"{customer} has no queues of its own")


async def _is_told_of_a_rejection(connection: aio_pika.abc.AbstractConnection, customer: str) -> None:
    """Submit a task that is wrong and read the report, which stays in the queue."""
    channel = await connection.channel()
    exchange = await channel.get_exchange("asg.submissions", ensure=False)
    message = aio_pika.Message(b'{"type": "poetry"}', message_id="order-1")
    await exchange.publish(message, f"task.submitted.{customer}", mandatory=True)
    feedback = await channel.get_queue(f"feedback.{customer}", ensure=False)
    async with asyncio.timeout(10), feedback.iterator() as reports:
        report = await anext(reports)
        data = json.loads(report.body)["data"]
        assert (data["message_id"], data["reason"]) == ("order-1", "invalid")
        await report.nack()


async def test_weight_of_a_producer_is_that_of_its_customer_and_its_user_can_be_managed_elsewhere(
    operator: Operator, rabbitmq: RabbitServer
) -> None:
    customer = operator.customer
    assert (await operator.run("topology", "apply"))[0] == 0
    assert (await operator.run("customer", "add", customer))[0] == 0
    assert "password" not in await operator.json("producer", "add", customer, "--no-user")
    for weight in (2.0, 3.0):
        assert (await operator.run("customer", "set", customer, "--weight", str(weight)))[0] == 0
        listed = {row.pop("cust_id"): row for row in await operator.json("producer", "list")}
        assert listed[customer]["weight"] == weight
    await operator.fails("producer", "rotate", customer, because=f"RabbitMQ has no user {customer}")
    with Ingest("work", directory=operator.directory, env=operator.env) as work:
        work.wait_for("own_queues_consumed")
        code, output = await operator.run("producer", "remove", customer, "--keep-user")
        assert (code, f"{customer} uses the shared queues" in output) == (0, True), output
    await operator.fails("producer", "remove", customer, because="has no queues of its own")
    rabbitmq.api("PUT", f"users/{customer}", {"password": "by-hand", "tags": ""})
    code, output = await operator.run("producer", "remove", customer)
    assert (code, f"{customer} is no longer a producer" in output) == (0, True), output
    assert customer not in {user["name"] for user in rabbitmq.api("GET", "users")}
