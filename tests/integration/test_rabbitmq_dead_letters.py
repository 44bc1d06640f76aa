"""Reading dead letters must not make RabbitMQ drop them."""

import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters, reading_hazard
from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.errors import ConfigurationError
from tests.contract.test_dead_letters import rejected_message
from tests.servers import RabbitServer


@pytest.mark.parametrize(
    ("major", "policies_known", "limit", "problem"),
    [
        (3, False, None, None),
        (3, True, None, None),
        (4, True, topology.NO_LIMIT, None),
        (3, True, 20, "delivery limit of 20"),
        (4, True, None, "delivery limit of 20"),
        (4, False, None, "INGEST_MANAGEMENT_URL"),
    ],
)
def test_reading_hazard_depends_on_version_and_delivery_limit(
    major: int, policies_known: bool, limit: int | None, problem: str | None
) -> None:
    """RabbitMQ 3 has no limit by default, RabbitMQ 4 has 20; a policy overrides this, so it must be known for 4."""
    hazard = reading_hazard(major, policies_known, limit)
    assert (hazard is None) == (problem is None)
    assert problem is None or problem in (hazard or "")


async def test_dead_letters_are_not_read_while_a_policy_sets_a_low_delivery_limit(
    rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """This also holds for operator policies. With the policies of the topology alone, the dead letters are read."""
    vhost = rabbitmq_url.rpartition("/")[2]
    management = Management(rabbitmq.management_url.replace("//", "//guest:guest@"), vhost)
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    await (await broker.publisher()).publish([rejected_message(1)])
    await broker.close()
    body = {"pattern": ".*", "definition": {"delivery-limit": 3}, "apply-to": "queues", "priority": 9}
    for kind in ("policies", "operator-policies"):
        rabbitmq.api("PUT", f"{kind}/{vhost}/low", body)
        management.apply_policies()
        queue = RabbitDeadLetters(RabbitBroker(rabbitmq_url), management)
        with pytest.raises(ConfigurationError, match="delivery limit of 3"):
            await queue.count()
        await queue.close()
        rabbitmq.api("DELETE", f"{kind}/{vhost}/low")
    queue = RabbitDeadLetters(RabbitBroker(rabbitmq_url), management)
    browsed = [delivery async for deliveries in queue.browse() for delivery in deliveries]
    await queue.close()
    assert [(delivery.message_id, delivery.deliveries) for delivery in browsed] == [("d1", 0)]


async def test_error_for_a_missing_queue_names_the_command_that_creates_it(rabbitmq_url: str) -> None:
    queue = RabbitDeadLetters(RabbitBroker(rabbitmq_url), None)
    with pytest.raises(ConfigurationError, match="ingest topology apply"):
        await queue.count()
    await queue.close()
