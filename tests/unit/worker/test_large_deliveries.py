"""Large and many direct submissions in the worker: they hold neither the event loop nor other deliveries."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.broker.embedded.broker import EmbeddedBroker
from ingest.domain import topology
from ingest.domain.admitted import Admitted
from ingest.domain.customers import Customer
from ingest.domain.identity import SubmissionKind
from ingest.domain.parsing import Unparsed, parse
from ingest.domain.submissions import MAX_TASK
from ingest.parsing.parser import SubmissionParser
from ingest.parsing.process import ParserProcess
from ingest.store.sqlite import SqliteStore
from tests.support import hostile
from tests.support.deliveries import admitted_delivery, direct_delivery
from tests.support.loop_hold import LoopHold
from tests.support.worker_harness import ProcessorHarness, WorkerHarness

HOLD = 0.05
"""The longest time for which deliveries may hold the event loop, in seconds."""
TASK_BODY = hostile.task("1")
LARGE = hostile.task(hostile.repeated("1"))
"""A task that is parsed in the child process, and refused."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.save_customer(Customer(cust_id="c"))
    yield store
    await store.close()


@pytest.fixture
async def processor(store: SqliteStore) -> AsyncIterator[ProcessorHarness]:
    harness = ProcessorHarness(store)
    yield harness
    await harness.close()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    broker = await EmbeddedBroker.open(tmp_path / "queue.db")
    yield broker
    await broker.close()


async def test_hostile_messages_are_rejected_without_holding_the_loop(processor: ProcessorHarness) -> None:
    """This includes their dead letters."""
    holds = {}
    for name, make in (hostile.TASKS | hostile.BATCHES).items():
        delivery = direct_delivery("m", make())
        async with LoopHold() as hold:
            published = await processor.attempt(delivery)
        print(f"{name}: held {hold.longest * 1000:.0f} ms")
        assert [message_id.partition(":")[0] for message_id in published] == ["dead", "rejected"]
        holds[name] = hold.longest
    assert {name: hold for name, hold in holds.items() if hold > HOLD} == {}


@pytest.mark.parametrize("name", hostile.LARGE_BATCHES)
@pytest.mark.parametrize("shim", [True, False])
async def test_large_batch_is_accepted_without_holding_the_loop(
    processor: ProcessorHarness, name: str, shim: bool
) -> None:
    body = hostile.LARGE_BATCHES[name]()
    submission = parse(Unparsed(SubmissionKind.BATCH, body, "c", frozenset(), "k"))
    delivery = admitted_delivery(Admitted(submission, 1, 86_400)) if shim else direct_delivery("m", body)
    async with LoopHold() as hold:
        published = await processor.attempt(delivery)
    assert len(published) == 1001
    assert hold.longest < HOLD


@pytest.mark.parametrize(
    ("count", "element", "size"),
    [(1000, "[]", 4_000), (250, "[]", 8_000), (250, "5e-324", 40_000), (250, "12345678", MAX_TASK - 1000)],
)
async def test_micro_batch_of_tasks_does_not_hold_the_loop(
    processor: ProcessorHarness, count: int, element: str, size: int
) -> None:
    """The tasks of one micro-batch are parsed one after another."""
    body = hostile.task(hostile.repeated(element, size))
    deliveries = [direct_delivery(f"m{number}", body) for number in range(count)]
    async with LoopHold() as hold:
        published = await processor.attempt(*deliveries)
    print(f"{count} tasks of {len(body):,} bytes: held {hold.longest * 1000:.0f} ms")
    assert len(published) == count
    assert hold.longest < HOLD


async def test_large_message_does_not_delay_others_of_its_queue(store: SqliteStore, broker: EmbeddedBroker) -> None:
    """The process that parses it hangs for 5 s; the others, which arrive with it, are accepted meanwhile."""
    hangs = ParserProcess(time_limit=5, command=(sys.executable, "-c", "import time; time.sleep(60)"))
    parser = SubmissionParser(process=hangs)
    async with WorkerHarness(store, broker, {topology.INGEST_TASKS: 200}, parser=parser) as harness:
        await harness.publish([TASK_BODY] * 10 + [LARGE] + [TASK_BODY] * 10)
        assert len(await harness.take(topology.CONSENSUS_TASKS, 20, 4)) == 20
        assert hangs.pid is not None
        await parser.close()


async def test_message_that_kills_its_parser_every_time_ends_as_a_dead_letter(
    store: SqliteStore, broker: EmbeddedBroker
) -> None:
    """Each time counts as a failed delivery, and the others are accepted."""
    dies = ParserProcess(command=(sys.executable, "-c", "import sys; sys.stdin.buffer.read(4); sys.exit(3)"))
    parser = SubmissionParser(process=dies)
    async with WorkerHarness(store, broker, {topology.INGEST_TASKS: 200}, parser=parser) as harness:
        await harness.publish([LARGE, *[TASK_BODY] * 10])
        (dead,) = await harness.take(topology.INGEST_DEAD, 1, 60)
        assert dead.body == LARGE
        assert len(await harness.take(topology.CONSENSUS_TASKS, 10)) == 10
