"""Servers for the tests, started on first use, once a session."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.servers import AerospikeServer, RabbitServer, Unavailable

# A busy machine is no failure; pytest's timeout ends what hangs.
settings.register_profile("tests", settings(), deadline=None)
settings.load_profile("tests")

_used: dict[str, str] = {}


def note_server(name: str, origin: str) -> None:
    """To be said at the end: what a server was, or why it was not there."""
    _used[name] = origin


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitServer]:
    """A private RabbitMQ node."""
    try:
        server = RabbitServer()
    except Unavailable as error:
        _used["RabbitMQ"] = f"SKIPPED: {error}"
        pytest.skip(f"RabbitMQ: {error}")
    _used["RabbitMQ"] = server.origin
    yield server
    server.stop()


@pytest.fixture
def rabbitmq_url(rabbitmq: RabbitServer) -> Iterator[str]:
    """A virtual host of its own."""
    url = rabbitmq.new_vhost()
    yield url
    rabbitmq.drop_vhost(url)


@pytest.fixture(scope="session")
def aerospike() -> Iterator[AerospikeServer]:
    """A private Aerospike server."""
    try:
        server = AerospikeServer()
    except Unavailable as error:
        _used["Aerospike"] = f"SKIPPED: {error}"
        pytest.skip(f"Aerospike: {error}")
    _used["Aerospike"] = server.origin
    yield server
    server.stop()


@pytest.fixture
def aerospike_url(aerospike: AerospikeServer) -> str:
    return aerospike.url


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests ran on."""
    for name, origin in _used.items():
        terminalreporter.write_line(f"{name}: {origin}")
