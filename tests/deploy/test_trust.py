"""deploy/trust.md says what each shipped RabbitMQ user may do; here each of them tries everything."""

import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote, urlsplit

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from tests.deploy.files import DEPLOY
from tests.deploy.provisioning import USERS, password_of
from tests.servers import RabbitServer

PAGE: Final = (DEPLOY / "trust.md").read_text()


def documented() -> dict[str, dict[str, bool]]:
    """Return by operation which users may do it, from the table of the page."""
    rows = [line.strip("|\n ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| .* \|$", line)]
    start = next(number for number, row in enumerate(rows) if row[0] == "operation")
    users = [cell.strip("`") for cell in rows[start][1:]]
    table = {}
    for operation, *cells in rows[start + 2 :]:
        if len(cells) != len(users):
            break
        table[operation] = {user: {"yes": True, "no": False}[cell] for user, cell in zip(users, cells, strict=True)}
    return table


class Attempts:
    """The operations of one user. Each returns whether the broker allows it."""

    def __init__(self, user: str, address: str, api: str) -> None:
        self._user = user
        self._url = f"amqp://{user}:{quote(password_of(user))}@{address}"
        self._vhost = urlsplit(self._url).path[1:]
        # No request uses a connection again: the server may close it at the moment in which the next one is sent.
        no_reuse = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=f"{api}/api/", auth=(user, password_of(user)), limits=no_reuse)

    async def submits_as_itself(self) -> bool:
        return await self._publishes("asg.submissions", f"task.submitted.{self._user}")

    async def submits_for_another_customer(self) -> bool:
        return await self._publishes("asg.submissions", "batch.submitted.other")

    async def publishes_as_the_shim(self) -> bool:
        routes = map(topology.route_to, topology.ADMITTED_QUEUES)
        results = {await self._publishes("asg.submissions", f"{route}.task.submitted.{self._user}") for route in routes}
        (allowed,) = results
        return allowed

    async def publishes_events(self) -> bool:
        return await self._publishes("asg.events", "task.accepted.sentiment.none")

    def parks(self, queue: str) -> Callable[[], Awaitable[bool]]:
        return lambda: self._publishes("asg.parked", queue)

    async def publishes_to_a_queue(self) -> bool:
        return await self._publishes("", "consensus.tasks")

    def reads(self, *queues: str) -> Callable[[], Awaitable[bool]]:
        """Get from and purge each queue, over AMQP and through the management API."""

        async def attempt() -> bool:
            results = set()
            for queue in queues:

                async def get(channel: AbstractChannel, queue: str = queue) -> None:
                    await (await channel.get_queue(queue, ensure=False)).get(fail=False)

                async def purge(channel: AbstractChannel, queue: str = queue) -> None:
                    await (await channel.get_queue(queue, ensure=False)).purge()

                path = f"queues/{self._vhost}/{queue}"
                results |= {await self._allows(get), await self._allows(purge)}
                self._http.request("DELETE", f"{path}/contents")
                body = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
                answer = self._http.post(f"{path}/get", json=body)
                if answer.is_success:
                    results.add(True)
            (allowed,) = results
            return allowed

        return attempt

    async def declares_and_deletes_a_queue(self) -> bool:
        name = f"ingest.{uuid.uuid4().hex}"

        async def declare(channel: AbstractChannel) -> None:
            await channel.declare_queue(name, durable=True)
            await channel.queue_delete(name)

        async def delete(channel: AbstractChannel) -> None:
            await channel.queue_delete("consensus.tasks", if_empty=True, if_unused=True)

        allowed = await self._allows(declare)
        if not allowed:
            assert not await self._allows(delete)
        return allowed

    async def sees_depths(self) -> bool:
        answer = self._http.get(f"queues/{self._vhost}")
        return answer.is_success and len(answer.json()) > 1

    async def sets_a_policy(self) -> bool:
        policy = {"pattern": "^nothing$", "definition": {"max-length": 1}, "apply-to": "queues"}
        return self._http.put(f"policies/{self._vhost}/trust", json=policy).is_success

    async def sees_users(self) -> bool:
        return self._http.get("users").is_success or self._http.get("permissions").is_success

    async def _publishes(self, exchange: str, routing_key: str) -> bool:
        async def publish(channel: AbstractChannel) -> None:
            target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
            await target.publish(aio_pika.Message(b"{}", message_id="m", user_id=self._user), routing_key)

        return await self._allows(publish)

    async def _allows(self, operation: Callable[[AbstractChannel], Awaitable[None]]) -> bool:
        async with await aio_pika.connect(self._url) as connection:
            try:
                async with connection.channel() as channel:
                    await operation(channel)
            except ChannelAccessRefused:
                return False
        return True

    def all(self) -> dict[str, Callable[[], Awaitable[bool]]]:
        """Return the operations by their names in the page."""
        return {
            "submit as the own user name": self.submits_as_itself,
            "submit for another customer": self.submits_for_another_customer,
            "publish to the queues of what the shim admitted, `ingest.http.*` and `ingest.heavy.*`": (
                self.publishes_as_the_shim
            ),
            "publish an event": self.publishes_events,
            "publish to a queue through the default exchange": self.publishes_to_a_queue,
            "read or purge an ingest queue (of submissions) or `ingest.dead`": self.reads(
                *topology.INGEST_QUEUES, "ingest.dead"
            ),
            "read or purge `consensus.tasks` and what is parked of it": self.reads(
                "consensus.tasks", "consensus.tasks.parked"
            ),
            "read or purge `webhook.dispatch` and what is parked of it": self.reads(
                "webhook.dispatch", "webhook.dispatch.parked"
            ),
            "park an event of `consensus.tasks`": self.parks("consensus.tasks"),
            "park an event of `webhook.dispatch`": self.parks("webhook.dispatch"),
            "read or purge the own feedback, `feedback.acme`": self.reads("feedback.acme"),
            "read or purge the feedback of another producer": self.reads("feedback.other"),
            "declare or delete a queue": self.declares_and_deletes_a_queue,
            "see the number of messages of each queue": self.sees_depths,
            "set a policy": self.sets_a_policy,
            "see users and permissions": self.sees_users,
        }


@pytest.mark.parametrize("user", USERS)
async def test_user_can_do_what_the_trust_model_says_and_nothing_else(
    rabbitmq: RabbitServer, broker_address: str, user: str
) -> None:
    ingest = f"amqp://ingest:{quote(password_of('ingest'))}@{broker_address}"
    await RabbitBroker(ingest).declare_queues([topology.feedback_queue(name) for name in ("acme", "other")])
    attempts = Attempts(user, broker_address, rabbitmq.management_url).all()
    allowed = {operation: await attempt() for operation, attempt in attempts.items()}
    assert allowed == {operation: users[user] for operation, users in documented().items()}


@pytest.mark.parametrize("routing_key", ["task.submitted.acme\n", "task.submitted.acme\n.x", "task.submitted.acme\r\n"])
async def test_routing_key_with_a_line_break_is_refused(broker_address: str, routing_key: str) -> None:
    """In PCRE `$` also matches before a final line break."""
    url = f"amqp://acme:{quote(password_of('acme'))}@{broker_address}"
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange("asg.submissions", ensure=False)
        with pytest.raises(ChannelAccessRefused):
            await exchange.publish(aio_pika.Message(b"{}", message_id="m", user_id="acme"), routing_key)
