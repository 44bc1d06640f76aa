"""The SDK's producer against RabbitMQ: every fault is survived, and nothing that was confirmed is missing."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from asg_gateway.amqp import BrokerRefusedError, BrokerUnavailableError, Producer, SubmittedTask, SyncProducer
from asg_gateway.amqp._producing.producer import CONFIRM_TIMEOUT

from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain import topology
from tests.integration.test_rabbitmq import rabbitmq_eval, skip_unless_controllable
from tests.servers import RabbitServer
from tests.support.eventually import eventually
from tests.support.tasks import TASK

CUSTOMER = "acme"
PASSWORD = "sec/ret"
FULL = {"pattern": "^ingest[.]tasks$", "apply-to": "queues", "priority": 9}


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[RabbitBroker]:
    """A virtual host with the topology."""
    broker = RabbitBroker(rabbitmq_url)
    await broker.declare()
    yield broker
    await broker.close()


@pytest.fixture
def vhost(rabbitmq_url: str) -> str:
    return rabbitmq_url.rpartition("/")[2]


@pytest.fixture
def url(rabbitmq: RabbitServer, rabbitmq_url: str, vhost: str) -> str:
    """The URL of the direct producer `acme`."""
    rabbitmq.api("PUT", f"users/{CUSTOMER}", {"password": PASSWORD, "tags": ""})
    permissions = {"configure": "^$", "write": "^asg[.]submissions$", "read": "^$"}
    rabbitmq.api("PUT", f"permissions/{vhost}/{CUSTOMER}", permissions)
    return rabbitmq_url.replace("guest:guest", f"{CUSTOMER}:{quote(PASSWORD, safe='')}")


async def messages(url: str, queue: str, at_least: int) -> list[AbstractIncomingMessage]:
    """Empty a queue. Raises TimeoutError if it has fewer messages."""
    taken: list[AbstractIncomingMessage] = []

    async def take(message: AbstractIncomingMessage) -> None:
        taken.append(message)

    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        source = await channel.get_queue(queue, ensure=False)
        consuming = await source.consume(take, no_ack=True)
        await eventually(lambda: len(taken) >= at_least, 30)
        seen = 0
        while seen < len(taken):
            seen = len(taken)
            await asyncio.sleep(0.3)
        await source.cancel(consuming)
    return taken


async def keys(url: str, at_least: int) -> Counter[str | None]:
    """Empty `ingest.tasks`; count the messages by key."""
    return Counter(message.message_id for message in await messages(url, topology.INGEST_TASKS, at_least))


async def test_message_has_the_properties_that_the_service_wants(
    broker: RabbitBroker, rabbitmq_url: str, url: str
) -> None:
    at = datetime(2026, 4, 9, 12, 0, 5, 900_000, tzinfo=UTC)
    async with Producer(url) as producer:
        submitted = await producer.submit(TASK, key="schlüssel", created_at=at, traceparent="00-1-2-01")
        batch = await producer.submit_batch([TASK, TASK], key="b", callback_url="https://a.example/hook")
        assert PASSWORD not in repr(producer)
    assert submitted == SubmittedTask(submitted.task_id, "schlüssel")
    (task,) = await messages(rabbitmq_url, topology.INGEST_TASKS, 1)
    (other,) = await messages(rabbitmq_url, topology.INGEST_BATCHES, 1)
    assert (task.routing_key, other.routing_key) == ("task.submitted.acme", "batch.submitted.acme")
    assert (task.message_id, task.user_id, task.content_type) == ("schlüssel", CUSTOMER, "application/json")
    assert (task.delivery_mode, task.priority, task.headers) == (2, 4, {"traceparent": "00-1-2-01"})
    assert task.timestamp == at.replace(microsecond=0)
    assert json.loads(task.body) == TASK
    assert json.loads(other.body) == {"tasks": [TASK, TASK], "callback_url": "https://a.example/hook"}
    assert len(set(batch.task_ids)) == 2


async def test_pipelined_tasks_are_all_in_the_queue(broker: RabbitBroker, rabbitmq_url: str, url: str) -> None:
    async with Producer(url, max_in_flight=200) as producer:
        results = [each async for each in producer.submit_many((f"k{number}", TASK) for number in range(3000))]
    assert [result.key for result in results] == [f"k{number}" for number in range(3000)]
    assert await keys(rabbitmq_url, 3000) == {f"k{number}": 1 for number in range(3000)}


async def test_closed_connection_loses_nothing(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str, url: str, vhost: str
) -> None:
    """It is closed twice, each time with thousands of calls in progress. The service drops the copies."""
    closed: set[str] = set()

    async def name() -> str:
        while True:
            listed = await asyncio.to_thread(rabbitmq.api, "GET", f"vhosts/{vhost}/connections")
            if new := {each["name"] for each in listed if each.get("user") == CUSTOMER} - closed:
                return str(new.pop())

    async with Producer(url) as producer:
        await producer.connect()
        for first in (0, 6000):
            open_one = await asyncio.wait_for(name(), 20)
            calls = [asyncio.create_task(producer.submit(TASK, key=f"k{first + number}")) for number in range(6000)]
            await eventually(calls[1000].done)
            await asyncio.to_thread(rabbitmq.close_connection, open_one)
            closed.add(open_one)
            assert not calls[-1].done()
            await asyncio.wait_for(asyncio.gather(*calls), CONFIRM_TIMEOUT / 2)  # no call waits for a lost confirm
    counted = await keys(rabbitmq_url, 12_000)
    assert counted.keys() == {f"k{number}" for number in range(12_000)}


async def test_returned_message_is_accepted_when_the_queue_is_back(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str, url: str, vhost: str
) -> None:
    await asyncio.to_thread(rabbitmq.api, "DELETE", f"queues/{vhost}/{topology.INGEST_TASKS}")
    async with Producer(url, deadline=30) as producer:
        calls = [asyncio.create_task(producer.submit(TASK, key=f"k{number}")) for number in range(20)]
        await asyncio.sleep(1)
        assert not any(call.done() for call in calls)
        await RabbitBroker(rabbitmq_url).declare()
        await asyncio.gather(*calls)
    assert set((await keys(rabbitmq_url, 20)).values()) == {1}


async def test_missing_queue_is_named_at_the_deadline(
    broker: RabbitBroker, rabbitmq: RabbitServer, url: str, vhost: str
) -> None:
    await asyncio.to_thread(rabbitmq.api, "DELETE", f"queues/{vhost}/{topology.INGEST_TASKS}")
    async with Producer(url, deadline=0.5) as producer:
        with pytest.raises(BrokerUnavailableError, match="the topology of the service is missing") as caught:
            await producer.submit(TASK, key="k")
    assert caught.value.idempotency_key == "k"


async def test_full_queue_delays_tasks_until_it_has_room(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str, url: str, vhost: str
) -> None:
    """RabbitMQ 3.10 nacks on the old channel even after that."""
    policy = FULL | {"definition": {"max-length": 1, "overflow": "reject-publish"}}
    await asyncio.to_thread(rabbitmq.api, "PUT", f"policies/{vhost}/full", policy)
    calls: list[asyncio.Task[SubmittedTask]] = []
    async with Producer(url, deadline=60) as producer:
        while all(call.done() for call in calls):
            calls.append(asyncio.create_task(producer.submit(TASK, key=f"k{len(calls)}")))
            await asyncio.wait(calls, timeout=3)
        calls += [asyncio.create_task(producer.submit(TASK, key=f"k{len(calls) + more}")) for more in range(20)]
        await asyncio.sleep(1)
        assert not any(call.done() for call in calls[-20:])
        await asyncio.to_thread(rabbitmq.api, "DELETE", f"policies/{vhost}/full")
        await asyncio.gather(*calls)
    assert (await keys(rabbitmq_url, len(calls))).keys() == {f"k{number}" for number in range(len(calls))}


async def test_many_submissions_of_one_key_all_succeed(broker: RabbitBroker, rabbitmq_url: str, url: str) -> None:
    async with Producer(url) as producer:
        results = await asyncio.gather(*[producer.submit(TASK, key="same") for _ in range(100)])
    assert len(set(results)) == 1
    assert await keys(rabbitmq_url, 1) == {"same": 100}


async def test_wrong_password_is_refused_at_once_without_showing_it(
    broker: RabbitBroker, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = url.replace(quote(PASSWORD, safe=""), "wr0ng-secret")
    began = time.monotonic()
    producer = Producer(wrong)
    outcomes = await asyncio.gather(
        *[producer.submit(TASK, key=f"k{number}") for number in range(50)], return_exceptions=True
    )
    await producer.close()
    assert time.monotonic() - began < 10
    assert {type(outcome) for outcome in outcomes} == {BrokerRefusedError}
    assert {getattr(outcome, "idempotency_key", "") for outcome in outcomes} == {f"k{number}" for number in range(50)}
    shown = f"{outcomes[0]!r} {outcomes[0]} {producer!r} {caplog.text}"
    assert "the login was refused: check user and password" in shown
    assert "wr0ng" not in shown


async def test_missing_permission_is_refused_at_once(
    broker: RabbitBroker, rabbitmq: RabbitServer, url: str, vhost: str
) -> None:
    nothing = {"configure": "^$", "write": "^$", "read": "^$"}
    await asyncio.to_thread(rabbitmq.api, "PUT", f"permissions/{vhost}/{CUSTOMER}", nothing)
    async with Producer(url) as producer:
        calls = [producer.submit(TASK, key=f"k{number}") for number in range(50)]
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    assert {type(outcome) for outcome in outcomes} == {BrokerRefusedError}
    assert "the user may not publish to asg.submissions" in str(outcomes[0])


async def test_other_routing_key_than_permitted_is_refused_and_other_submissions_pass(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str, url: str, vhost: str
) -> None:
    """Batches are not permitted here. The tasks in flight with them are published again."""
    topic = {"exchange": topology.SUBMISSIONS, "write": r"^task\.", "read": "^$"}
    await asyncio.to_thread(rabbitmq.api, "PUT", f"topic-permissions/{vhost}/{CUSTOMER}", topic)
    async with Producer(url) as producer:
        calls: list[Any] = [producer.submit(TASK, key=f"k{number}") for number in range(100)]
        calls.insert(50, producer.submit_batch([TASK], key="batch"))
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(outcome) for outcome in refused] == [BrokerRefusedError]
    assert outcomes[50] is refused[0]
    assert (await keys(rabbitmq_url, 100)).keys() == {f"k{number}" for number in range(100)}


async def test_missing_exchange_is_refused_at_once(rabbitmq_url: str) -> None:
    async with Producer(rabbitmq_url, CUSTOMER) as producer:
        with pytest.raises(BrokerRefusedError, match=r"asg\.submissions does not exist in this virtual host"):
            await producer.submit(TASK, key="k")


async def test_blocked_connection_ends_at_the_deadline_and_works_after_the_alarm(
    broker: RabbitBroker, rabbitmq: RabbitServer, rabbitmq_url: str, url: str
) -> None:
    skip_unless_controllable(rabbitmq)
    async with Producer(url, deadline=3, confirm_timeout=1, max_in_flight=10) as producer:
        await producer.submit(TASK, key="before")
        await rabbitmq_eval(rabbitmq, "vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
        try:
            began = time.monotonic()
            calls = [producer.submit(TASK, key=f"k{number}") for number in range(30)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {BrokerUnavailableError}
            assert 2.5 < time.monotonic() - began < 6
        finally:
            await rabbitmq_eval(rabbitmq, "vm_memory_monitor:set_vm_memory_high_watermark(0.6).")
        async with asyncio.timeout(30):
            while isinstance(
                (await asyncio.gather(producer.submit(TASK, key="k0"), return_exceptions=True))[0], Exception
            ):
                pass
    assert {"before", "k0"} <= (await keys(rabbitmq_url, 2)).keys()


async def test_sync_producer_submits_from_threads(broker: RabbitBroker, rabbitmq_url: str, url: str) -> None:
    with SyncProducer(url) as producer:

        def submit_some(name: str) -> list[str]:
            one = producer.submit(TASK, key=f"{name}-one").key
            many = [each.key for each in producer.submit_many((f"{name}-{number}", TASK) for number in range(1200))]
            return [one, *many]

        parts = await asyncio.gather(*[asyncio.to_thread(submit_some, name) for name in "abc"])
        batch = await asyncio.to_thread(lambda: producer.submit_batch([TASK] * 1001, key="batch"))
    assert (len(batch.parts), len(set(batch.task_ids))) == (2, 1001)
    assert (await keys(rabbitmq_url, 3603)).keys() == {key for part in parts for key in part}
