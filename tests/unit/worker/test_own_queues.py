"""The queues of single producers: consumed from their registration until their removal, in virtual time."""

import asyncio

from ingest.domain.errors import StoreUnavailable
from ingest.domain.topology import own_queues
from ingest.worker.own_queues import OwnQueues
from tests.support.loop_harness import HeldConsumer, LoopHarness
from tests.support.virtual_time_loop import in_virtual_time

TASKS, BATCHES = (queue.name for queue in own_queues("acme"))


class Registry:
    """Names the producers; None if the store is unavailable."""

    def __init__(self) -> None:
        self.weights: dict[str, float] | None = {}

    async def producers(self) -> dict[str, float]:
        if self.weights is None:
            raise StoreUnavailable("unavailable")
        return dict(self.weights)


class Broker:
    """Makes consumers, and keeps the latest of each queue."""

    def __init__(self) -> None:
        self.consumers: dict[str, HeldConsumer] = {}
        self.prefetch: dict[str, int] = {}

    async def consumer(self, queue: str, prefetch: int) -> HeldConsumer:
        self.prefetch[queue] = prefetch
        self.consumers[queue] = HeldConsumer(queue)
        return self.consumers[queue]


class Harness(LoopHarness):
    """A running loop, and what keeps its queues up to date."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.broker = Broker()
        self.own_queues = OwnQueues(self.registry, self.broker, self.loop, (100, 4), self.stopping)  # type: ignore[arg-type]

    async def run_both(self, seconds: float) -> None:
        async def use() -> None:
            updating = asyncio.create_task(self.own_queues.run())
            await asyncio.sleep(seconds)
            self.stopping.set()
            await updating

        await self.run(use())


@in_virtual_time
async def test_queues_are_consumed_within_seconds_after_the_registration() -> None:
    harness = Harness()

    async def register() -> None:
        await asyncio.sleep(7)
        harness.registry.weights = {"acme": 2.0}
        await asyncio.sleep(5)
        harness.broker.consumers[TASKS].deliver("task")
        harness.broker.consumers[BATCHES].deliver("batch")

    registering = asyncio.create_task(register())
    await harness.run_both(20)
    await registering
    assert harness.broker.prefetch == {TASKS: 100, BATCHES: 4}
    assert {name for _, names in harness.processor.attempts for name in names} == {"task", "batch"}
    assert harness.loop.weights == {TASKS: 2.0, BATCHES: 2.0}


@in_virtual_time
async def test_queues_of_a_removed_producer_are_left_once_their_deliveries_are_finished() -> None:
    harness = Harness()
    harness.registry.weights = {"acme": 1.0}
    closed = []

    async def remove() -> None:
        await asyncio.sleep(1)
        consumers = harness.broker.consumers
        consumers[TASKS].finished = False
        harness.registry.weights = {}
        await asyncio.sleep(10)
        closed.append(consumers[TASKS].is_closed)
        consumers[TASKS].finished = True
        await asyncio.sleep(1)
        closed.append(consumers[TASKS].is_closed and consumers[BATCHES].is_closed)

    removing = asyncio.create_task(remove())
    await harness.run_both(30)
    await removing
    assert closed == [False, True]


@in_virtual_time
async def test_queues_stay_consumed_while_the_store_is_unavailable() -> None:
    harness = Harness()
    harness.registry.weights = {"acme": 1.0}

    async def fail() -> None:
        await asyncio.sleep(1)
        harness.registry.weights = None
        await asyncio.sleep(60)
        harness.broker.consumers[TASKS].deliver("task")

    failing = asyncio.create_task(fail())
    await harness.run_both(70)
    await failing
    assert len(harness.processor.times_of("task")) == 1
    assert not harness.broker.consumers[TASKS].is_closed


@in_virtual_time
async def test_queue_that_is_added_while_the_worker_stops_does_not_keep_it_running() -> None:
    harness = Harness()

    async def use() -> None:
        await asyncio.sleep(1)
        harness.stopping.set()
        assert not await harness.loop.consume(harness.broker, TASKS, 10)  # type: ignore[arg-type]

    async with asyncio.timeout(10):
        await harness.run(use())
    assert harness.broker.consumers[TASKS].is_closed
