"""The address of RabbitMQ in the SDK: what a URL means, and that its password is never shown."""

import asyncio

import aiormq
import pytest
from asg_gateway import BrokerRefusedError, BrokerUnavailableError
from asg_gateway._backoff import Backoff
from asg_gateway.amqp._connection import Address, broker_errors, problem


def urls(url: str) -> list[tuple[str | None, str | None, str | None, int | None, str]]:
    return [(one.user, one.password, one.host, one.port, one.path[1:]) for one in Address(url)._urls]


def test_url_names_every_node_with_the_same_user_and_virtual_host() -> None:
    user = ("acme", "p@s/s", "a.example", 5673, "v")
    assert urls("amqp://acme:p%40s%2Fs@a.example:5673,b.example/v") == [user, (*user[:2], "b.example", 5672, "v")]


@pytest.mark.parametrize(
    ("url", "port", "vhost"),
    [
        ("amqp://u:p@h", 5672, ""),
        ("amqp://u:p@h/", 5672, ""),
        ("amqps://u:p@h/", 5671, ""),
        ("amqp://u:p@h/%2f", 5672, "/"),
        ("amqp://u:p@h/a%2fb", 5672, "a/b"),
    ],
)
def test_port_and_virtual_host_have_the_usual_defaults(url: str, port: int, vhost: str) -> None:
    """RabbitMQ's default virtual host is named `/`; aiormq takes an empty one for it."""
    assert urls(url) == [("u", "p", "h", port, vhost)]


def test_address_of_ipv6() -> None:
    assert urls("amqp://u:p@[::1]:5672/v") == [("u", "p", "::1", 5672, "v")]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://u:secret@h", "must begin with amqp:// or amqps://"),
        ("amqp:u:secret@h", "must begin with amqp:// or amqps://"),
        ("amqp://u:sec/ret@h/", "write / as %2F"),
        ("amqp://u:sec ret@h/", "write / as %2F"),
        ("amqp://u:secret@h/?heartbeat=1", "neither a query nor a fragment"),
        ("amqp://u:secret@h/#v", "neither a query nor a fragment"),
        ("amqp://u:secret@/v", "the host or the port is missing or invalid"),
        ("amqp://u:secret@h:99999/", "the host or the port is missing or invalid"),
        ("amqp://u:secret@h,/", "the host or the port is missing or invalid"),
        ("amqp://u:secret@h:x/", "the host or the port is missing or invalid"),
    ],
)
def test_wrong_url_is_an_error_that_says_what_to_change_without_the_password(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Address(url)
    assert "sec" not in str(caught.value).replace("a space", "")


def test_text_of_an_address_has_neither_user_nor_password() -> None:
    assert str(Address("amqps://acme:secret@a:1,b/v")) == "a:1, b:5671"


async def test_nodes_are_tried_in_turn() -> None:
    """Nothing listens on a port below 10 here."""
    address = Address("amqp://acme:secret@127.0.0.1:1,127.0.0.1:2/v")
    for port in (1, 2, 1):
        with pytest.raises(BrokerUnavailableError, match=f"127.0.0.1:{port}") as caught:
            await address.connect("test")
        assert "secret" not in f"{caught.value}{caught.value!r}"


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (aiormq.exceptions.ProbableAuthenticationError("x"), BrokerRefusedError, "the login was refused"),
        (aiormq.exceptions.ChannelAccessRefused(403, "no"), BrokerRefusedError, "no"),
        (aiormq.exceptions.InvalidFrameError("Expected Connection.OpenOk"), BrokerRefusedError, "the virtual host"),
        (aiormq.exceptions.InvalidFrameError("other"), BrokerUnavailableError, "other"),
        (aiormq.exceptions.ConnectionClosed(320, "forced"), BrokerUnavailableError, "forced"),
        (TimeoutError(), BrokerUnavailableError, "no answer in time"),
        (ConnectionResetError(104, "reset"), BrokerUnavailableError, "reset"),
        (asyncio.IncompleteReadError(b"", 7), BrokerUnavailableError, "0 bytes read"),
    ],
)
def test_errors_of_aio_pika_are_those_of_the_sdk(error: Exception, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match="RabbitMQ at h:1: ") as caught, broker_errors("h:1"):
        raise error
    assert type(caught.value) is kind
    assert sentence in str(caught.value)
    assert problem(error) in str(caught.value)


def test_pauses_double_up_to_the_longest_and_begin_again() -> None:
    pauses = Backoff(0.5, 3.0, jitter=lambda: 1.0)
    assert [pauses.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    pauses.reset()
    assert pauses.next() == 0.5
