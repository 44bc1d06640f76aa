"""The feedback of a producer on a real RabbitMQ."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from asg_gateway import BrokerRefusedError
from asg_gateway.amqp import Consumer, Event, Feedback, MemoryDedupe, SubmissionDuplicate, SubmissionRejected
from asg_gateway.amqp.testing import submission_duplicate, submission_rejected, task_accepted

from tests.servers import RabbitServer
from tests.support.parked_topology import Broker, declared

QUEUE = "feedback.acme"
REPORTS = [submission_rejected(id=f"report-{number}", message_id=f"order-{number}") for number in range(5)]
KEYS = [report.key for report in REPORTS]


@pytest.fixture
async def broker(rabbitmq_url: str) -> AsyncIterator[Broker]:
    async with declared(rabbitmq_url, [QUEUE], parking=False) as broker:
        yield broker


@pytest.fixture
def url(rabbitmq: RabbitServer, rabbitmq_url: str, broker: Broker) -> str:
    """The URL of the producer `acme`, which may only read its feedback."""
    rabbitmq.api("PUT", "users/acme", {"password": "pw", "tags": ""})
    permissions = {"configure": "^$", "write": "^$", "read": "^feedback[.]acme$"}
    rabbitmq.api("PUT", f"permissions/{rabbitmq_url.rpartition('/')[2]}/acme", permissions)
    return rabbitmq_url.replace("guest:guest", "acme:pw")


async def keys(url: str) -> list[str]:
    """Return the keys of all reports that are in the queue, acknowledged."""
    async with Feedback(url, timeout=1) as feedback:
        return [report.key async for report in feedback]


async def test_reports_of_both_kinds_are_typed_and_copies_and_others_are_skipped(broker: Broker, url: str) -> None:
    duplicate = submission_duplicate(message_id="m", idempotency_key="k")
    await broker.publish(QUEUE, REPORTS[0], duplicate, REPORTS[0], task_accepted(), b"no event")
    async with Feedback(url, timeout=1) as feedback:
        reports = [report async for report in feedback]
    assert reports == [REPORTS[0], duplicate]
    assert [type(report) for report in reports] == [SubmissionRejected, SubmissionDuplicate]
    assert [report.key for report in reports] == [KEYS[0], "k"]
    assert await broker.count(QUEUE) == 0


async def test_report_is_acknowledged_when_the_next_one_is_asked_for(broker: Broker, url: str) -> None:
    await broker.publish(QUEUE, *REPORTS)

    async def fail() -> None:
        async with Feedback(url) as feedback:
            async for report in feedback:
                if report.key == KEYS[2]:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await keys(url) == KEYS[2:]


async def test_report_is_acknowledged_when_the_loop_is_left_with_break(broker: Broker, url: str) -> None:
    await broker.publish(QUEUE, *REPORTS)
    async with Feedback(url) as feedback:
        async for report in feedback:
            if report.key == KEYS[1]:
                break
    assert await keys(url) == KEYS[2:]


async def test_report_is_delivered_again_if_the_loop_is_cancelled(broker: Broker, url: str) -> None:
    async def hang() -> None:
        async with Feedback(url) as feedback:
            async for report in feedback:
                begun.set_result(report)
                await asyncio.sleep(60)

    begun: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
    await broker.publish(QUEUE, REPORTS[0])
    task = asyncio.create_task(hang())
    await asyncio.wait_for(begun, 20)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await keys(url) == KEYS[:1]


async def test_report_in_progress_when_the_connection_is_lost_is_not_returned_again(
    broker: Broker, rabbitmq: RabbitServer, url: str
) -> None:
    await broker.publish(QUEUE, *REPORTS)
    received = []
    async with Feedback(url, timeout=3) as feedback:
        async for report in feedback:
            received.append(report.key)
            if len(received) == 2:
                await close_connection(rabbitmq, "asg-gateway consumes feedback.acme")
    assert sorted(received) == KEYS
    assert await broker.count(QUEUE) == 0


async def test_feedback_of_another_customer_is_refused(broker: Broker, url: str) -> None:
    await broker.channel.declare_queue("feedback.other", durable=True)
    with pytest.raises(BrokerRefusedError, match=r"access to queue 'feedback.other'"):
        async with Feedback(url, "other"):
            pass


async def test_queue_that_does_not_exist_is_an_error_that_says_what_to_do(rabbitmq_url: str) -> None:
    with pytest.raises(BrokerRefusedError, match=r"the queue feedback.guest does not exist: .*ingest producer add"):
        async with Feedback(rabbitmq_url):
            pass


async def test_consumer_handles_feedback_too(broker: Broker, url: str) -> None:
    seen: list[Event] = []
    await broker.publish(QUEUE, *REPORTS, REPORTS[0])
    consumer = Consumer(url, QUEUE, seen.append, dedupe=MemoryDedupe(), max_attempts=None)
    running = asyncio.create_task(consumer.run())
    async with asyncio.timeout(20):
        while consumer.stats.handled + consumer.stats.duplicates < 6:
            await asyncio.sleep(0.02)
    consumer.stop()
    await running
    assert sorted(event.id for event in seen) == [report.id for report in REPORTS]


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_invalid_timeout_is_a_value_error(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        Feedback("amqp://acme:pw@host/", timeout=timeout)


async def close_connection(rabbitmq: RabbitServer, name: str) -> None:
    """Close a client's connection, which the management API shows after some seconds."""

    def names() -> set[str]:
        found = rabbitmq.api("GET", "connections")
        return {each["name"] for each in found if each.get("client_properties", {}).get("connection_name") == name}

    async with asyncio.timeout(30):
        while not (open_names := await asyncio.to_thread(names)):
            await asyncio.sleep(0.1)
        for open_name in open_names:
            await asyncio.to_thread(rabbitmq.close_connection, open_name)
        while open_names & await asyncio.to_thread(names):
            await asyncio.sleep(0.1)
