"""How several queues share the loop of a worker: a scripted processor, in virtual time."""

import asyncio

from tests.support.loop_harness import LoopHarness
from tests.support.virtual_time_loop import in_virtual_time

LARGE = b'"type"' * 50
"""The body of a batch that is a micro-batch by itself."""
BATCH = "batch.submitted.acme"


@in_virtual_time
async def test_micro_batch_has_deliveries_of_several_queues() -> None:
    harness = LoopHarness()
    harness.processor.seconds = 1

    async def use() -> None:
        harness.consumer.deliver("first")
        await asyncio.sleep(0.5)
        harness.consumer.deliver("a")
        harness.other.deliver("b")
        await asyncio.sleep(1)
        assert harness.processor.attempts == [(0, ["first"]), (1, ["a", "b"])]

    await harness.run(use())


@in_virtual_time
async def test_delivery_of_a_quiet_queue_does_not_wait_for_the_backlog_of_another() -> None:
    harness = LoopHarness(max_batch=100)
    harness.processor.seconds = 1

    async def use() -> None:
        harness.consumer.deliver(*[str(number) for number in range(1000)])
        await asyncio.sleep(0.5)
        harness.other.deliver("quiet")
        await asyncio.sleep(1)
        assert harness.processor.times_of("quiet") == [1]

    await harness.run(use())


@in_virtual_time
async def test_lost_connection_of_one_queue_costs_only_its_own_deliveries() -> None:
    """The micro-batch is attempted with the others; what cannot be finished is requeued where it came from."""
    harness = LoopHarness()
    harness.processor.seconds = 1
    harness.processor.trouble = {"defect": ZeroDivisionError()}

    async def use() -> None:
        harness.consumer.deliver("first")
        await asyncio.sleep(0.5)
        harness.consumer.lost = harness.consumer.deliver("lost")
        harness.other.deliver("good", "defect")
        await asyncio.sleep(10)

    await harness.run(use())
    assert harness.processor.attempts[1] == (1, ["good", "defect"])
    assert harness.processor.times_of("lost") == []
    assert [names for _, names in harness.other.requeued] == [["defect"]]
    assert harness.consumer.requeued == []


@in_virtual_time
async def test_deliveries_wait_apart_at_their_own_queues() -> None:
    harness = LoopHarness()
    harness.processor.trouble = {"a": "refused", "b": "refused", "c": "contended"}
    harness.consumer.deliver("a")
    harness.other.deliver("b", "c")
    await harness.run_for(5)
    assert harness.consumer.apart == [(["a"], 1)]
    assert harness.other.apart == [(["b"], 1), (["c"], 2)]


@in_virtual_time
async def test_queues_share_the_memory_of_what_waits_apart_and_none_takes_all() -> None:
    """A queue may take as much as is free: of 16 MiB the first one 8, then the other 4. The rest moves to the end."""
    harness = LoopHarness()
    names = [f"{queue}{number}" for queue in "ab" for number in range(10)]
    harness.processor.trouble = dict.fromkeys(names, "refused")
    harness.consumer.deliver(*names[:10], body=b"x" * 1024 * 1024)

    async def use() -> None:
        await asyncio.sleep(0.2)
        harness.other.deliver(*names[10:], body=b"x" * 1024 * 1024)
        await asyncio.sleep(5)

    await harness.run(use())
    assert [name for apart, _ in harness.consumer.apart for name in apart] == names[:8]
    assert [name for apart, _ in harness.other.apart for name in apart] == names[10:14]
    assert {name for _, moved in harness.processor.moves for name in moved} == {*names[8:10], *names[14:]}


@in_virtual_time
async def test_at_most_three_large_submissions_are_in_progress_and_the_queues_share_these_slots() -> None:
    """Small ones do not wait for them. A large one that fails gives its slot back."""
    harness = LoopHarness()
    harness.processor.seconds = 10
    harness.processor.trouble = {"0": "contended"}

    async def use() -> None:
        harness.consumer.deliver(*"012345", body=LARGE, routing_key=BATCH)
        await asyncio.sleep(1)
        harness.other.deliver("other", body=LARGE, routing_key=BATCH)
        harness.other.deliver("small")
        await asyncio.sleep(1)
        assert harness.processor.attempts == [(0, ["0"]), (0, ["1"]), (0, ["2"]), (1, ["small"])]
        await asyncio.sleep(8.01)
        assert sorted(harness.processor.attempts[4:]) == [(10, ["3"]), (10, ["4"]), (10, ["other"])]

    await harness.run(use())


@in_virtual_time
async def test_stop_finishes_what_all_queues_have_delivered() -> None:
    harness = LoopHarness()
    harness.processor.seconds = 1
    harness.consumer.deliver("a")
    harness.consumer.deliver("large", body=LARGE, routing_key=BATCH)
    harness.other.deliver("b")
    await harness.run_for(0.5)
    finished = {name for _, names in harness.processor.attempts for name in names}
    assert finished == {"a", "large", "b"}
