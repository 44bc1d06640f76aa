"""What a worker opens, consumes and closes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from ingest.admission import Admission
from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain.errors import BrokerUnavailable
from ingest.domain.messages import Delivery
from ingest.domain.topology import INGEST_BATCHES, INGEST_TASKS
from ingest.parsing.parser import SubmissionParser
from ingest.store.sqlite import SqliteStore
from ingest.worker import Worker
from tests.support.deliveries import direct_delivery
from tests.support.eventually import eventually
from tests.support.fakes import AckingConsumer, ScriptedPublisher
from tests.support.tasks import TASK


class ClosingPublisher(ScriptedPublisher):
    """Records its micro-batches, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    async def close(self) -> None:
        self.is_closed = True


class ListConsumer(AckingConsumer):
    """Delivers a list, then nothing until it is stopped. `micro_batches` are what was acked together."""

    def __init__(self, deliveries: list[Delivery]) -> None:
        super().__init__()
        self._deliveries = deliveries
        self._stopped = asyncio.Event()
        self.micro_batches: list[int] = []
        self.is_closed = False

    async def receive(self) -> list[Delivery]:
        deliveries, self._deliveries = self._deliveries, []
        if not deliveries:
            await self._stopped.wait()
        return deliveries

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await super().ack(deliveries)
        self.micro_batches.append(len(deliveries))

    async def stop(self) -> None:
        self._stopped.set()

    async def close(self) -> None:
        self.is_closed = True


class ScriptedBroker(EmbeddedBroker):
    """Hands out scripted publishers and consumers. Queues without deliveries cannot be consumed."""

    def __init__(self, deliveries: dict[str, list[Delivery]]) -> None:
        self.consumers = {queue: ListConsumer(own) for queue, own in deliveries.items()}
        self.prefetch: dict[str, int] = {}
        self.connections_asked = 0
        self.scripted = ClosingPublisher()

    async def depths(self, queues: Sequence[str]) -> dict[str, int | None]:
        return dict.fromkeys(queues)

    async def publisher(self, connections: int = 1) -> ClosingPublisher:  # type: ignore[override]
        self.connections_asked = connections
        return self.scripted

    async def consumer(self, queue: str, prefetch: int) -> ListConsumer:  # type: ignore[override]
        self.prefetch[queue] = prefetch
        if queue not in self.consumers:
            raise BrokerUnavailable("no such queue")
        return self.consumers[queue]


class WatchedParser(SubmissionParser):
    is_closed = False

    async def close(self) -> None:
        self.is_closed = True
        await super().close()


class WatchedAdmission(Admission):
    """Counts searches for refunds, and records whether it was closed."""

    searches = 0
    is_closed = False

    async def refund_doubts(self) -> int:
        self.searches += 1
        return 0

    async def close(self, seconds: float = 5.0) -> None:
        self.is_closed = True


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()


class Harness:
    """A worker on scripted queues."""

    def __init__(self, store: SqliteStore, prefetch: dict[str, int], deliveries: dict[str, list[Delivery]]) -> None:
        self.broker = ScriptedBroker(deliveries)
        self.admission = WatchedAdmission(store)
        self.parser = WatchedParser()
        self.worker = Worker(
            store=store,
            broker=self.broker,
            admission=self.admission,
            trusted_users=frozenset(),
            prefetch=prefetch,
            refund_interval=0.01,
            parser=self.parser,
        )

    @property
    def all_closed(self) -> bool:
        consumers = self.broker.consumers.values()
        return self.broker.scripted.is_closed and self.parser.is_closed and all(own.is_closed for own in consumers)


def rejected(queue: str, count: int) -> list[Delivery]:
    """Deliveries whose customer does not exist, which makes a micro-batch of them end with one ack."""
    body = {"tasks": [TASK] * 50} if queue == INGEST_BATCHES else TASK
    return [direct_delivery(f"m{number}", body) for number in range(count)]


@pytest.mark.parametrize(("prefetch", "largest"), [(40, 10), (43, 10), (4, 1), (1, 1)])
async def test_micro_batch_is_a_quarter_of_the_prefetch_and_one_large_batch(
    store: SqliteStore, prefetch: int, largest: int
) -> None:
    deliveries = {queue: rejected(queue, 30) for queue in (INGEST_TASKS, INGEST_BATCHES)}
    harness = Harness(store, {INGEST_TASKS: prefetch, INGEST_BATCHES: 1}, deliveries)
    running = asyncio.create_task(harness.worker.run())
    tasks, batches = harness.broker.consumers[INGEST_TASKS], harness.broker.consumers[INGEST_BATCHES]
    await eventually(lambda: len(tasks.acked) == len(batches.acked) == 30 and harness.admission.searches > 1)
    assert not running.done()
    harness.worker.stop()
    await asyncio.wait_for(running, 5)
    assert (max(tasks.micro_batches), set(batches.micro_batches)) == (largest, {1})
    assert (harness.broker.prefetch, harness.broker.connections_asked) == (
        {INGEST_TASKS: prefetch, INGEST_BATCHES: 1},
        2,
    )
    assert harness.all_closed
    assert harness.admission.is_closed


async def test_everything_is_closed_if_a_queue_cannot_be_consumed(store: SqliteStore) -> None:
    harness = Harness(store, {INGEST_TASKS: 4, INGEST_BATCHES: 2}, {INGEST_TASKS: []})
    with pytest.raises(BrokerUnavailable):
        await harness.worker.run()
    assert harness.all_closed


async def test_cancelled_worker_closes_everything_at_once(store: SqliteStore) -> None:
    harness = Harness(store, {INGEST_TASKS: 4}, {INGEST_TASKS: rejected(INGEST_TASKS, 1)})
    running = asyncio.create_task(harness.worker.run())
    await eventually(lambda: harness.broker.consumers[INGEST_TASKS].acked)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert harness.all_closed
