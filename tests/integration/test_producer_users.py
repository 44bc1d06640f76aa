"""The RabbitMQ users of direct producers: what `ingest producer` creates, changes and refuses to touch."""

import uuid
from collections.abc import AsyncIterator
from urllib.parse import quote, urlsplit

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused, ProbableAuthenticationError

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.permissions import permissions
from ingest.broker.rabbitmq.producer_users import ProducerUsers
from ingest.broker.rabbitmq.provisioning import apply_topology, bind_producer_queues, declare_producer_queues
from ingest.domain.errors import ConfigurationError
from tests.servers import RabbitServer
from tests.servers.process import wait_until

SERVICE_USER = "guest"


class Producer:
    """A customer with a name that no other test uses, and queues of its own."""

    def __init__(self, rabbitmq: RabbitServer, url: str) -> None:
        self.name = f"p-{uuid.uuid4().hex[:8]}"
        self.rabbitmq = rabbitmq
        self.url = url
        self.vhost = urlsplit(url).path[1:]
        api = rabbitmq.management_url.replace("//", "//guest:guest@")
        self.management = Management(api, self.vhost)
        self.users = ProducerUsers(self.management, frozenset({SERVICE_USER}))

    async def create(self) -> None:
        broker = RabbitBroker(self.url)
        await apply_topology(broker, self.management)
        await declare_producer_queues(broker, self.management, self.name)
        await bind_producer_queues(broker, self.name)

    async def connect(self, password: str) -> aio_pika.abc.AbstractConnection:
        address = self.url.partition("@")[2]
        return await aio_pika.connect(f"amqp://{self.name}:{quote(password)}@{address}")

    async def may_publish(self, password: str, routing_key: str) -> bool:
        async with await self.connect(password) as connection, connection.channel() as channel:
            exchange = await channel.get_exchange("asg.submissions", ensure=False)
            try:
                await exchange.publish(aio_pika.Message(b"{}", message_id="m"), routing_key)
            except ChannelAccessRefused:
                return False
        return True

    async def may_read(self, password: str, queue: str) -> bool:
        async with await self.connect(password) as connection, connection.channel() as channel:
            try:
                await (await channel.get_queue(queue, ensure=False)).get(fail=False)
            except ChannelAccessRefused:
                return False
        return True

    def create_by_hand(self, tags: str, write: str, read: str = "^$", vhost: str = "") -> None:
        self.rabbitmq.api("PUT", f"users/{self.name}", {"password": "by-hand", "tags": tags})
        body = {"configure": "^$", "write": write, "read": read}
        self.rabbitmq.api("PUT", f"permissions/{vhost or self.vhost}/{self.name}", body)

    @property
    def exists(self) -> bool:
        return self.name in {user["name"] for user in self.rabbitmq.api("GET", "users")}


@pytest.fixture
async def producer(rabbitmq: RabbitServer, rabbitmq_url: str) -> AsyncIterator[Producer]:
    producer = Producer(rabbitmq, rabbitmq_url)
    await producer.create()
    yield producer
    if producer.exists:
        rabbitmq.api("DELETE", f"users/{producer.name}")


async def test_new_user_submits_as_itself_and_reads_its_own_feedback(producer: Producer) -> None:
    password = producer.users.create(producer.name)
    assert password is not None
    assert await producer.may_publish(password, f"task.submitted.{producer.name}")
    assert not await producer.may_publish(password, "task.submitted.other")
    assert await producer.may_read(password, f"feedback.{producer.name}")
    for queue in ("feedback.other", f"ingest.direct.{producer.name}.tasks", "consensus.tasks"):
        assert not await producer.may_read(password, queue)
    findings = permissions(producer.management, SERVICE_USER, frozenset())
    assert [finding.what for finding in findings if producer.name in finding.what] == []


async def test_existing_user_keeps_its_password_and_gets_the_missing_permissions(producer: Producer) -> None:
    """Those of an earlier version could read nothing."""
    producer.create_by_hand("", "^asg[.]submissions$")
    assert producer.users.create(producer.name) is None
    assert await producer.may_read("by-hand", f"feedback.{producer.name}")
    assert not await producer.may_publish("by-hand", "task.submitted.other")


async def test_limits_that_an_interrupted_command_has_not_set_are_set_the_next_time(producer: Producer) -> None:
    """A limit that an operator has changed stays."""
    producer.create_by_hand("", "^asg[.]submissions$")
    producer.management.put(f"user-limits/{producer.name}/max-channels", {"value": 7})
    producer.users.create(producer.name)
    limits = {row["user"]: row["value"] for row in producer.management.get("user-limits")}
    assert limits[producer.name] == {"max-connections": 20, "max-channels": 7}


async def test_further_permissions_of_an_existing_user_stay(producer: Producer) -> None:
    producer.create_by_hand("", "^asg[.]submissions$", "^(consensus[.]tasks|own)$")
    assert producer.users.create(producer.name) is None
    assert await producer.may_read("by-hand", "consensus.tasks")


SERVICE = "^(asg|ingest|consensus|webhook|feedback)[.]"


@pytest.mark.parametrize(
    ("tags", "write"),
    [("monitoring", "^asg[.]submissions$"), ("", "^$"), ("", "^asg[.]parked$"), ("", SERVICE), ("", ".*")],
)
async def test_user_that_is_not_one_of_a_producer_is_not_touched(producer: Producer, tags: str, write: str) -> None:
    """A customer may have the name of a consumer's or an operator's user."""
    producer.create_by_hand(tags, write)
    for change in (producer.users.create, producer.users.new_password, producer.users.delete):
        with pytest.raises(ConfigurationError, match="is not one of a producer"):
            change(producer.name)
    await (await producer.connect("by-hand")).close()


@pytest.mark.parametrize("name", [SERVICE_USER, "worker-2"])
async def test_user_of_the_service_is_not_touched(producer: Producer, name: str) -> None:
    """Also one that does not exist yet."""
    users = ProducerUsers(producer.management, frozenset({SERVICE_USER, "worker-2"}))
    for change in (users.create, users.new_password, users.delete):
        with pytest.raises(ConfigurationError, match="is not one of a producer"):
            change(name)


async def test_new_password_replaces_the_old_one(producer: Producer) -> None:
    with pytest.raises(ConfigurationError, match=f"run `ingest producer add {producer.name}`"):
        producer.users.new_password(producer.name)
    old = producer.users.create(producer.name)
    assert old is not None
    connection = await producer.connect(old)
    new = producer.users.new_password(producer.name)
    with pytest.raises(ProbableAuthenticationError):
        await producer.connect(old)
    assert await producer.may_publish(new, f"task.submitted.{producer.name}")
    assert not connection.is_closed
    # The management API shows a connection only after some time.
    wait_until(lambda: producer.users.close_connections(producer.name) > 0, "the connection of the old password", 20)
    await connection.close()


async def test_deleted_user_cannot_connect_and_stays_in_other_virtual_hosts(
    producer: Producer, rabbitmq: RabbitServer
) -> None:
    password = producer.users.create(producer.name)
    assert password is not None
    other = urlsplit(rabbitmq.new_vhost()).path[1:]
    body = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
    rabbitmq.api("PUT", f"permissions/{other}/{producer.name}", body)
    producer.users.delete(producer.name)
    assert producer.exists
    rows = rabbitmq.api("GET", f"users/{producer.name}/permissions")
    assert [row["vhost"] for row in rows] == [other]
    producer.users.delete(producer.name)  # it has no permissions here any more
    rabbitmq.api("DELETE", f"vhosts/{other}")
    producer.users.create(producer.name)
    producer.users.delete(producer.name)
    assert not producer.exists
    producer.users.delete(producer.name)  # again, after an interruption


async def test_management_user_without_the_tag_is_told_so(producer: Producer, rabbitmq: RabbitServer) -> None:
    name = f"monitoring-{producer.name}"
    rabbitmq.api("PUT", f"users/{name}", {"password": "pw", "tags": "monitoring,policymaker"})
    api = producer.rabbitmq.management_url.replace("//", f"//{name}:pw@")
    users = ProducerUsers(Management(api, producer.vhost), frozenset())
    with pytest.raises(ConfigurationError, match="lacks the tag `administrator`"):
        users.create(producer.name)
    rabbitmq.api("DELETE", f"users/{name}")
