"""`ingest doctor` accepts the shipped RabbitMQ users, whichever of them it uses."""

from urllib.parse import quote

import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.checks import findings
from ingest.broker.rabbitmq.management import Management
from ingest.domain.findings import Finding, Severity
from tests.deploy.provisioning import password_of
from tests.servers import RabbitServer


@pytest.fixture(scope="module")
def vhost(broker_address: str) -> str:
    """A virtual host with the shipped topology, policies and users. `guest` is an administrator in it."""
    return broker_address.partition("/")[2]


async def checked(rabbitmq: RabbitServer, vhost: str, user: str, manager: str) -> list[Finding]:
    """Return the findings with `user` in INGEST_BROKER_URL and `manager` in INGEST_MANAGEMENT_URL."""

    def login(name: str) -> str:
        return f"{name}:{'guest' if name == 'guest' else quote(password_of(name))}@"

    broker = RabbitBroker(f"amqp://{login(user)}{rabbitmq.url.partition('@')[2]}/{vhost}")
    management = Management(rabbitmq.management_url.replace("//", f"//{login(manager)}"), vhost)
    return await findings(broker, management, frozenset(), 600)


@pytest.mark.parametrize("manager", ["operator", "monitoring", "guest"])
async def test_shipped_users_cause_no_error_and_no_advice_to_change_permissions(
    rabbitmq: RabbitServer, vhost: str, manager: str
) -> None:
    """The warnings are about the test server: it is a single node, and an old version."""
    found = await checked(rabbitmq, vhost, "ingest", manager)
    problems = {finding.what.split(":")[0] for finding in found if finding.severity is not Severity.OK}
    assert problems - {"RabbitMQ 3 is out of support, and a direct producer can stop its queues"} == {
        "only one RabbitMQ node"
    }
    assert not any("permissions" in finding.do for finding in found)


@pytest.mark.parametrize("user", ["operator", "monitoring", "consensus", "acme"])
async def test_user_that_is_not_the_services_is_one_error_that_gives_nothing_away(
    rabbitmq: RabbitServer, vhost: str, user: str
) -> None:
    """The advice must not be to give this user all permissions, nor to take them from the service's user."""
    found = await checked(rabbitmq, vhost, user, "guest")
    (error,) = [finding for finding in found if finding.severity is Severity.ERROR]
    assert "service's user" in error.do
    assert not error.do.startswith("rabbitmqctl")
    assert not any("set_permissions ingest" in finding.do for finding in found)


@pytest.mark.parametrize("manager", ["ingest", "acme"])
async def test_management_user_without_tags_is_one_warning_that_lists_what_was_not_checked(
    rabbitmq: RabbitServer, vhost: str, manager: str
) -> None:
    found = await checked(rabbitmq, vhost, "ingest", manager)
    (warning,) = [finding for finding in found if "management API" in finding.what]
    assert warning.severity is Severity.WARNING
    assert warning.what.endswith(
        "Not checked: topology and policies, nodes and alarms, queue members, permissions, the users of connected "
        "shims and workers"
    )
    assert "`monitoring` or `operator`" in warning.do
