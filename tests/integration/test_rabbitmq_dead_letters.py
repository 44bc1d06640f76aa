"""Looking at dead letters must not make RabbitMQ drop them."""

import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters, reading_hazard
from ingest.broker.rabbitmq.management import Management
from ingest.domain import topology
from ingest.domain.errors import ConfigurationError
from tests.contract.test_dead_letters import refused
from tests.servers import RabbitServer


@pytest.mark.parametrize(
    ("major", "asked", "limit", "says"),
    [
        (3, False, None, None),
        (3, True, None, None),
        (4, True, topology.NO_LIMIT, None),
        (3, True, 20, "delivery limit of 20"),
        (4, True, None, "delivery limit of 20"),
        (4, False, None, "INGEST_MANAGEMENT_URL"),
    ],
)
def test_when_looking_is_dangerous(major: int, asked: bool, limit: int | None, says: str | None) -> None:
    """RabbitMQ 3 has no limit by default, 4 has 20; a policy decides; where it cannot be asked, 4 is not safe."""
    why = reading_hazard(major, asked, limit)
    assert (why is None) == (says is None)
    assert says is None or says in (why or "")


async def test_a_policy_with_a_low_limit_is_told_before_anything_is_touched(
    rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """No look, no count; with the topology's own policies it goes on. Operator policies count."""
    vhost = rabbitmq_url.rpartition("/")[2]
    management = Management(rabbitmq.management_url.replace("//", "//guest:guest@"), vhost)
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    await (await broker.publisher()).publish([refused(1)])
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
    found = [each async for some in queue.browse() for each in some]
    await queue.close()
    assert [(each.message_id, each.deliveries) for each in found] == [("d1", 0)]


async def test_a_missing_queue_is_told(rabbitmq_url: str) -> None:
    """It says which command makes it."""
    queue = RabbitDeadLetters(RabbitBroker(rabbitmq_url), None)
    with pytest.raises(ConfigurationError, match="ingest topology apply"):
        await queue.count()
    await queue.close()
