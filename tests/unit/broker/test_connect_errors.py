"""What the RabbitMQ adapter says if it cannot connect."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiormq.exceptions import ProbableAuthenticationError
from yarl import URL

from ingest.broker.rabbitmq.amqp.connection import connect_problem
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.errors import BrokerUnavailable
from tests.servers.process import free_ports


@pytest.fixture
async def closing_server() -> AsyncIterator[int]:
    """The port of a server that closes every connection at once."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def errors_at(port: int) -> list[str]:
    """Return the messages of a connection of a publisher, and of a plain one."""
    broker = RabbitBroker(f"amqp://u:secret@127.0.0.1:{port}")
    publisher = await broker.publisher()
    with pytest.raises(BrokerUnavailable) as of_publisher:
        await publisher.ready()
    await broker.close()
    with pytest.raises(BrokerUnavailable) as of_declaration:
        await broker.declare()
    return [str(of_publisher.value), str(of_declaration.value)]


async def test_error_of_a_broker_that_closes_the_connection_names_address_and_cause(closing_server: int) -> None:
    for message in await errors_at(closing_server):
        assert message.split(f"cannot connect to RabbitMQ at 127.0.0.1:{closing_server}: ")[1], message
        assert "secret" not in message


async def test_error_of_a_closed_port_names_address_and_cause() -> None:
    (port,) = free_ports(1)
    for message in await errors_at(port):
        assert f"127.0.0.1:{port}: " in message
        assert "Errno 111" in message


async def test_processes_begin_with_different_hosts_of_the_url() -> None:
    """Otherwise all would be connected to the first node of a cluster, and wait for it if it is separated."""
    first, second = free_ports(2)
    problems = []
    for _ in range(40):
        broker = RabbitBroker(f"amqp://u:secret@127.0.0.1:{first},127.0.0.1:{second}")
        publisher = await broker.publisher()
        with pytest.raises(BrokerUnavailable) as error:
            await publisher.ready()
        problems.append(str(error.value))
        await broker.close()
    assert any(f":{first}: " in problem for problem in problems)
    assert any(f":{second}: " in problem for problem in problems)


def test_error_of_a_refused_login_names_the_user_and_what_to_check() -> None:
    error = ProbableAuthenticationError("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.")
    assert connect_problem(error, URL("amqp://u:secret@h/")) == (
        "the login of user u was refused: check user and password in INGEST_BROKER_URL "
        "(ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.)"
    )
