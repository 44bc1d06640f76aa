"""Servers for the tests. Each one is started once per session, when the first test needs it."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.servers import AerospikeServer, RabbitServer, Unavailable
from tests.servers.rabbitmq_programs import named_directory
from tests.support.parallel import pytest_sessionfinish, pytest_testnodedown, pytest_xdist_make_scheduler
from tests.support.summary import note_server, pytest_terminal_summary

# pytest calls the hooks that this module has.
__all__ = ["pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown", "pytest_xdist_make_scheduler"]

# A slow machine must not fail a test; pytest's timeout ends a test that hangs.
settings.register_profile("tests", settings(), deadline=None)
settings.load_profile("tests")


def pytest_configure() -> None:
    """Check and correct the environment before any test runs. Raises pytest.UsageError."""
    # The commands under test inherit it if a shell has started the run in the background, which ignores Ctrl-C.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        named_directory()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitServer]:
    """A RabbitMQ node that all tests share."""
    try:
        server = RabbitServer()
    except Unavailable as error:
        note_server("RabbitMQ", f"SKIPPED: {error}")
        pytest.skip(f"RabbitMQ: {error}")
    note_server("RabbitMQ", server.origin)
    yield server
    server.stop()


@pytest.fixture
def rabbitmq_url(rabbitmq: RabbitServer) -> Iterator[str]:
    """The URL of a new virtual host, for one test."""
    url = rabbitmq.new_vhost()
    yield url
    rabbitmq.drop_vhost(url)


@pytest.fixture(scope="session")
def aerospike() -> Iterator[AerospikeServer]:
    """An Aerospike server that all tests share."""
    try:
        server = AerospikeServer()
    except Unavailable as error:
        note_server("Aerospike", f"SKIPPED: {error}")
        pytest.skip(f"Aerospike: {error}")
    note_server("Aerospike", server.origin)
    yield server
    server.stop()


@pytest.fixture
def aerospike_url(aerospike: AerospikeServer) -> str:
    return aerospike.url
