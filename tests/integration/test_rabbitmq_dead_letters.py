"""Reading dead letters must not make RabbitMQ drop them."""

import time
from datetime import UTC, datetime
from typing import Any

import aio_pika
import pytest

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.dead_letters import RabbitDeadLetters, reading_hazard
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.versions import checks_deaths
from ingest.domain import topology
from ingest.domain.dead_letters import read
from ingest.domain.errors import ConfigurationError
from ingest.operations.dead_letters import Selection
from ingest.operations.remedies import remedy
from tests.contract.test_broker import take
from tests.contract.test_dead_letters import rejected_message
from tests.servers import RabbitServer

OLD = datetime(2001, 1, 1, tzinfo=UTC)


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


async def test_expired_submission_says_whether_its_producer_or_a_policy_made_it_expire(
    rabbitmq: RabbitServer, rabbitmq_url: str
) -> None:
    """RabbitMQ takes the shorter one if both are set; the record of the death then has the producer's setting."""
    vhost = rabbitmq_url.rpartition("/")[2]
    management = Management(rabbitmq.management_url.replace("//", "//guest:guest@"), vhost)
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    management.apply_policies()
    batches = management.policies().of(topology.INGEST_BATCHES) | {"message-ttl": 100}
    policy = {"pattern": "batches", "definition": batches, "apply-to": "queues", "priority": 9}
    rabbitmq.api("PUT", f"policies/{vhost}/ttl", policy)
    async with await broker.connect() as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(topology.SUBMISSIONS, ensure=False)
        own = aio_pika.Message(b"{}", message_id="own", expiration=0.1)
        await exchange.publish(own, "task.submitted.acme")
        await exchange.publish(aio_pika.Message(b"{}", message_id="policy"), "batch.submitted.acme")
    letters = [
        read(delivery, frozenset()) for delivery in await take(await broker.consumer(topology.INGEST_DEAD, 10), 2)
    ]
    await broker.close()
    assert {letter.reason for letter in letters} == {"expired"}
    assert {letter.id: letter.expiration for letter in letters} == {"own": "100", "policy": None}
    remedies = {letter.id: remedy(letter) for letter in letters}
    assert "Its producer has set `expiration`" in remedies["own"]
    assert "message-ttl" in remedies["policy"]


def forged(**fields: object) -> dict[str, object]:
    """Return the header of a submission that expired in 2001."""
    death = {"queue": "ingest.tasks", "reason": "expired", "count": 1, "time": OLD, "exchange": "asg.submissions"}
    return {"x-death": [death | {"routing-keys": ["task.submitted.acme"]} | fields]}


@pytest.mark.parametrize(
    "headers",
    [
        forged(),
        forged(count=0, **{"original-expiration": "100"}),
        forged(count=-5),
        forged(time=978_307_200),
        forged(time="2001-01-01T00:00:00Z"),
        forged(queue="other"),
        {"x-death": "text"},
        {"x-ingest-rejected-at": "2001-01-01T00:00:00Z", "x-first-death-reason": "rejected"},
    ],
    ids=["same", "count 0", "count -5", "number", "text", "other queue", "no list", "other headers"],
)
async def test_producer_cannot_make_its_dead_letter_look_old(
    rabbitmq: RabbitServer, rabbitmq_url: str, headers: dict[str, Any]
) -> None:
    """RabbitMQ 3 keeps the time of a forged entry for the same queue and reason, so it is not believed there."""
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    vhost = rabbitmq_url.rpartition("/")[2]
    Management(rabbitmq.management_url.replace("//", "//guest:guest@"), vhost).apply_policies()
    async with await broker.connect() as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(topology.SUBMISSIONS, ensure=False)
        message = aio_pika.Message(b"{}", message_id="m", expiration=0.1, headers=headers, timestamp=OLD)
        await exchange.publish(message, "task.submitted.acme")
    (delivery,) = await take(await broker.consumer(topology.INGEST_DEAD, 10), 1)
    version = (await broker.inspect()).version
    await broker.close()
    dead = read(delivery, frozenset())
    assert not Selection(older_than=3600).takes(dead, time.time())
    assert (dead.died_at is None) == (not checks_deaths(version))
    assert Selection(older_than=3600).lacks_age(dead) == (dead.died_at is None)


async def test_error_for_a_missing_queue_names_the_command_that_creates_it(rabbitmq_url: str) -> None:
    queue = RabbitDeadLetters(RabbitBroker(rabbitmq_url), None)
    with pytest.raises(ConfigurationError, match="ingest topology apply"):
        await queue.count()
    await queue.close()
