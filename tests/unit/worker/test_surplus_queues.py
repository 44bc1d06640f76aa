"""Queues of the shim that the worker's settings do not name: consumed while they have messages, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ingest.domain.errors import BrokerUnavailable
from ingest.domain.topology import MAX_QUEUES, Layout
from ingest.worker.surplus_queues import INTERVAL, SurplusQueues
from tests.support.loop_harness import HeldConsumer, LoopHarness
from tests.support.virtual_time_loop import in_virtual_time

SECOND = "ingest.http.2"


class Broker:
    """Has so many messages in queues; None if it is unavailable."""

    def __init__(self) -> None:
        self.messages: dict[str, int] | None = {}
        self.consumers: dict[str, HeldConsumer] = {}
        self.opened: Callable[[], None] = lambda: None
        """Called when a consumer is opened."""

    async def depths(self, queues: Sequence[str]) -> dict[str, int | None]:
        if self.messages is None:
            raise BrokerUnavailable("unavailable")
        return {queue: self.messages.get(queue) for queue in queues}

    async def consumer(self, queue: str, prefetch: int) -> HeldConsumer:
        self.consumers[queue] = HeldConsumer(queue)
        self.opened()
        return self.consumers[queue]


class Harness(LoopHarness):
    def __init__(self, layout: Layout = Layout(2, 1)) -> None:  # noqa: B008 - it cannot change
        super().__init__()
        self.broker = Broker()
        self.queues = SurplusQueues(self.broker, self.loop, layout, 10, self.stopping)  # type: ignore[arg-type]

    async def during(self, steps: Callable[[], Awaitable[None]]) -> None:
        async def use() -> None:
            looking = asyncio.create_task(self.queues.run())
            await steps()
            self.stopping.set()
            await looking

        await self.run(use())

    @property
    def consumed(self) -> list[str]:
        """The surplus queues that are consumed now."""
        return [queue for queue, consumer in self.broker.consumers.items() if not consumer.is_closed]


@in_virtual_time
async def test_queue_with_messages_is_consumed_until_it_has_been_empty_for_a_while() -> None:
    harness = Harness()

    async def steps() -> None:
        await asyncio.sleep(1)
        assert harness.consumed == []
        harness.broker.messages = {SECOND: 5, "ingest.heavy.1": 0}
        await asyncio.sleep(INTERVAL)
        assert harness.consumed == [SECOND]
        harness.broker.consumers[SECOND].deliver("task")
        harness.broker.messages = {SECOND: 0, "ingest.heavy.1": 0}
        await asyncio.sleep(2 * INTERVAL)
        assert harness.consumed == [SECOND]
        await asyncio.sleep(2 * INTERVAL)
        assert harness.consumed == []
        harness.broker.messages[SECOND] = 1
        await asyncio.sleep(INTERVAL)
        assert harness.consumed == [SECOND], "it is consumed again"

    await harness.during(steps)
    assert len(harness.processor.times_of("task")) == 1


@in_virtual_time
async def test_queue_is_not_left_while_its_deliveries_are_held() -> None:
    """In an outage, or while their events are refused, a return would count as a failed delivery."""
    harness = Harness()

    async def steps() -> None:
        harness.broker.messages = {SECOND: 5}
        await asyncio.sleep(1)
        harness.broker.consumers[SECOND].finished = False
        harness.broker.messages = {SECOND: 0}
        await asyncio.sleep(20 * INTERVAL)
        assert harness.consumed == [SECOND]
        harness.broker.consumers[SECOND].finished = True
        await asyncio.sleep(4 * INTERVAL)
        assert harness.consumed == []

    await harness.during(steps)


@in_virtual_time
async def test_queue_that_is_deleted_is_left() -> None:
    harness = Harness()

    async def steps() -> None:
        harness.broker.messages = {SECOND: 5, "ingest.http.3": 1}
        await asyncio.sleep(1)
        assert harness.consumed == [SECOND, "ingest.http.3"]
        harness.broker.messages = {SECOND: 5}
        await asyncio.sleep(INTERVAL)
        assert harness.consumed == [SECOND]

    await harness.during(steps)


@in_virtual_time
async def test_all_queues_of_both_classes_are_found_up_to_the_largest_number() -> None:
    for layout in (Layout(2, 1), Layout(MAX_QUEUES, 15), Layout(MAX_QUEUES, MAX_QUEUES)):
        harness = Harness(layout)
        harness.broker.messages = {name: 1 for names in layout.surplus for name in names}
        await harness.during(lambda: asyncio.sleep(1))
        assert sorted(harness.broker.consumers) == sorted(harness.broker.messages)


@in_virtual_time
async def test_worker_that_stops_while_a_consumer_is_opened_closes_it() -> None:
    harness = Harness()
    harness.broker.messages = {SECOND: 5}
    harness.broker.opened = harness.stopping.set

    async def steps() -> None:
        await harness.stopping.wait()

    await harness.during(steps)
    assert list(harness.broker.consumers) == [SECOND]
    assert harness.consumed == []


@in_virtual_time
async def test_nothing_changes_while_the_broker_is_unavailable() -> None:
    harness = Harness()

    async def steps() -> None:
        harness.broker.messages = {SECOND: 5}
        await asyncio.sleep(1)
        harness.broker.messages = None
        await asyncio.sleep(10 * INTERVAL)
        assert harness.consumed == [SECOND]

    await harness.during(steps)


def test_every_number_up_to_the_largest_is_surplus_or_not() -> None:
    layout = Layout(3, 1)
    http, heavy = layout.surplus
    assert [*layout.http_queues, *http] == [f"ingest.http.{number}" for number in range(MAX_QUEUES)]
    assert [*layout.heavy_queues, *heavy] == [f"ingest.heavy.{number}" for number in range(MAX_QUEUES)]
