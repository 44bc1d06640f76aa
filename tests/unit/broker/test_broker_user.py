"""Whom the service publishes as, and so whom the worker trusts."""

import pytest

from ingest import settings
from ingest.backends import broker_backend
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "given", "user"),
    [
        ("amqp://ingest:pw@host", None, "ingest"),
        ("amqp://host", None, "guest"),
        ("amqps://host,other/vhost?auth=external", "ingest", "ingest"),
        ("amqps://host?auth=EXTERNAL", "ingest", "ingest"),
    ],
)
def test_the_user(url: str, given: str | None, user: str) -> None:
    """The URL's, or the one that the client certificate stands for."""
    assert RabbitBroker(url, certificate_user=given).user == user


@pytest.mark.parametrize(
    ("url", "given", "says"),
    [
        ("amqps://host?auth=external", None, "set INGEST_BROKER_USER"),
        ("amqps://host?auth=external", "", "set INGEST_BROKER_USER"),
        ("amqp://host?auth=external", "ingest", "must begin with amqps://"),
        ("amqps://ingest:pw@host", "other", r"add \?auth=external"),
    ],
)
async def test_what_does_not_go_together(url: str, given: str | None, says: str) -> None:
    """Told at the start: without its user's name the worker would take what the shim has admitted for forged."""
    loaded = settings.load(broker_url=url, broker_user=given)
    with pytest.raises(ConfigurationError, match=says):
        await broker_backend(loaded).open("test")
