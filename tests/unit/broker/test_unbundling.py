"""How `UnbundlingConsumer` uses the consumer below it: when it sets bundles apart, and when publishing fails."""

import asyncio
from collections.abc import Sequence

import msgspec
from structlog.testing import capture_logs

from ingest.broker.bundles.consumer import UnbundlingConsumer
from ingest.domain import admitted, bundles
from ingest.domain.messages import Delivery, Message, PublishOutcome
from ingest.domain.ports import Publisher
from ingest.domain.topology import SUBMISSIONS
from tests.support.deliveries import delivery
from tests.support.fakes import AckingConsumer, ScriptedPublisher


class LowerConsumer(AckingConsumer):
    """Delivers what a test gives it, on connections that a test breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[Delivery] = []
        self.apart: list[tuple[list[Delivery], int]] = []
        self.connection = 0
        self.unacked = 0

    def deliver(self, *messages: Message, deliveries: int = 0) -> None:
        for message in messages:
            self.unacked += 1
            self.arrived.append(
                delivery(
                    body=message.body,
                    queue="ingest.http.0",
                    routing_key=message.routing_key,
                    message_id=message.message_id,
                    user_id="ingest",
                    type=message.type,
                    deliveries=deliveries,
                    token=(self.connection, message.message_id),
                )
            )

    @property
    def held(self) -> int:
        return self.unacked

    def alive(self, delivery: Delivery) -> bool:
        return bool(delivery.token[0] == self.connection)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self.unacked -= sum(map(self.alive, deliveries))
        await super().ack(deliveries)

    async def receive(self) -> list[Delivery]:
        received, self.arrived = self.arrived, []
        return received

    async def set_apart(self, deliveries: Sequence[Delivery], extra: int) -> None:
        self.apart.append((list(deliveries), extra))

    def lose_connection(self) -> None:
        self.connection += 1
        self.unacked = 0


class Harness:
    def __init__(self) -> None:
        self.lower = LowerConsumer()
        self.publisher = ScriptedPublisher()
        self.consumer = UnbundlingConsumer(self.lower, frozenset({"ingest"}), self._publisher)

    async def _publisher(self) -> Publisher:
        return self.publisher


def tasks(*numbers: int) -> list[Message]:
    return [
        Message(
            exchange=SUBMISSIONS,
            routing_key="http.0.task.submitted.c",
            body=b"%d" % number,
            message_id=f"tsk_{number}",
            type=admitted.TYPE,
        )
        for number in numbers
    ]


def lower_ids(deliveries: Sequence[Delivery]) -> list[str | None]:
    return [delivery.message_id for delivery in deliveries]


async def test_bundle_is_set_apart_when_all_that_remains_of_it_waits() -> None:
    harness = Harness()
    harness.lower.deliver(bundles.pack(tasks(0, 1, 2)), *tasks(3))
    first, second, third, single = await harness.consumer.receive()
    await harness.consumer.set_apart([third, single], 7)
    ((apart, extra),) = harness.lower.apart
    assert (lower_ids(apart), extra) == (["tsk_3"], 7)
    await harness.consumer.ack([first])
    assert len(harness.lower.apart) == 1
    await harness.consumer.ack([second])
    assert lower_ids(harness.lower.apart[1][0]) == ["bundle:tsk_0"]
    assert harness.lower.acked == []
    await harness.consumer.ack([third])
    assert lower_ids(harness.lower.acked) == ["bundle:tsk_0"]


async def test_submissions_of_a_lost_connection_are_not_held() -> None:
    harness = Harness()
    harness.lower.deliver(bundles.pack(tasks(0, 1, 2)), bundles.pack(tasks(3, 4)))
    lost = await harness.consumer.receive()
    assert harness.consumer.held == 5
    await harness.consumer.ack(lost[:1])
    harness.lower.lose_connection()
    assert harness.consumer.held == 0
    assert not any(map(harness.consumer.alive, lost))
    harness.lower.deliver(bundles.pack(tasks(0, 1, 2)))
    await harness.consumer.receive()
    await harness.consumer.ack(lost)
    assert harness.consumer.held == 3


async def test_submissions_are_separated_again_until_the_broker_confirms() -> None:
    harness = Harness()
    harness.publisher.outcome = PublishOutcome.NACKED
    harness.lower.deliver(bundles.pack(tasks(0, 1)), deliveries=2)
    with capture_logs() as logs:
        assert await harness.consumer.receive() == []
        while not harness.publisher.sent:
            await asyncio.sleep(0)
        assert harness.lower.acked == []
        harness.publisher.outcome = PublishOutcome.CONFIRMED
        async with asyncio.timeout(5):
            while not harness.lower.acked:
                await asyncio.sleep(0.01)
    assert [message.message_id for message in harness.publisher.sent] == ["tsk_0", "tsk_1"] * 2
    assert [log["event"] for log in logs] == ["bundle_taken_apart", "submissions_not_separated"]
    await harness.consumer.close()


async def test_closed_consumer_separates_nothing_more() -> None:
    harness = Harness()
    harness.publisher.outcome = PublishOutcome.UNSENT
    harness.lower.deliver(bundles.pack(tasks(0, 1)), deliveries=2)
    await harness.consumer.receive()
    async with asyncio.timeout(5):
        await harness.consumer.close()
    assert harness.lower.acked == []


async def test_submission_keeps_no_other_of_its_bundle_in_memory() -> None:
    harness = Harness()
    harness.lower.deliver(bundles.pack(tasks(0, 1)))
    for submission in await harness.consumer.receive():
        assert type(submission.body) is bytes
        assert submission.token.bundle.delivery.body == b""
        assert msgspec.json.decode(submission.body) in (0, 1)
