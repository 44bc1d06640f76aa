"""A RabbitMQ virtual host as `deploy/` makes it."""

from collections.abc import Iterator

import pytest

from tests.deploy.provisioning import provision
from tests.servers import RabbitServer


@pytest.fixture(scope="module")
def broker_address(rabbitmq: RabbitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port/vhost` of a virtual host with the shipped users."""
    with provision(rabbitmq, tmp_path_factory.mktemp("passwords")) as address:
        yield address
