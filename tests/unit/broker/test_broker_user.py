"""The AMQP user of the service, whose messages the worker trusts."""

import pytest

from ingest import settings
from ingest.backends import broker_backend
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "certificate_user", "user"),
    [
        ("amqp://ingest:pw@host", None, "ingest"),
        ("amqp://host", None, "guest"),
        ("amqps://host,other/vhost?auth=external", "ingest", "ingest"),
        ("amqps://host?auth=EXTERNAL", "ingest", "ingest"),
    ],
)
def test_user_is_the_one_in_the_url_or_that_of_the_client_certificate(
    url: str, certificate_user: str | None, user: str
) -> None:
    assert RabbitBroker(url, certificate_user=certificate_user).user == user


@pytest.mark.parametrize(
    ("url", "broker_user", "message"),
    [
        ("amqps://host?auth=external", None, "set INGEST_BROKER_USER"),
        ("amqps://host?auth=external", "", "set INGEST_BROKER_USER"),
        ("amqp://host?auth=external", "ingest", "must begin with amqps://"),
        ("amqps://ingest:pw@host", "other", r"add \?auth=external"),
    ],
)
async def test_service_does_not_start_if_url_and_broker_user_do_not_match(
    url: str, broker_user: str | None, message: str
) -> None:
    """Without the name of its own user, the worker would treat the shim's messages as forged."""
    backend = broker_backend(settings.load(broker_url=url, broker_user=broker_user))
    with pytest.raises(ConfigurationError, match=message):
        await backend.open("test")
