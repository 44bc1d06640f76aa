"""Micro-batches of requests: when they start, their limits and their results."""

import asyncio
import contextlib
import contextvars
import gc
import sys

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.fair_queue import QueueFull
from ingest.shim.batcher import MicroBatcher
from tests.support.virtual_time_loop import in_virtual_time


async def test_micro_batch_logs_without_context_of_its_first_request() -> None:
    """The log context of the process applies to the micro-batch; the context of a request does not."""
    contexts: list[dict[str, object]] = []

    async def run(items: list[int]) -> list[int]:
        contexts.append(structlog.contextvars.get_contextvars())
        return items

    def make() -> MicroBatcher[int, int]:
        structlog.contextvars.bind_contextvars(role="serve")
        return MicroBatcher(run, max_batch=10, max_concurrency=1, max_queue=10, deadline=5)

    batcher = contextvars.copy_context().run(make)
    with structlog.contextvars.bound_contextvars(request_id="r"):
        assert await batcher.submit(1) == 1
    assert contexts == [{"role": "serve"}]


class Gate:
    """Records micro-batches. They finish once `open` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.open.wait()
        return items


async def run_other_tasks() -> None:
    """Give the other tasks a few iterations of the event loop."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_second_micro_batch_starts_once_min_batch_items_wait() -> None:
    """The first item runs alone, after a few turns of the event loop."""
    gate = Gate()
    batcher = MicroBatcher(gate.run, max_batch=10, max_concurrency=2, max_queue=100, deadline=5, min_batch=3)
    results = [asyncio.ensure_future(batcher.submit(0))]
    await run_other_tasks()
    for item in (1, 2):
        results.append(asyncio.ensure_future(batcher.submit(item)))
        await run_other_tasks()
    assert gate.batches == [[0]]
    results.append(asyncio.ensure_future(batcher.submit(3)))
    await run_other_tasks()
    assert gate.batches == [[0], [1, 2, 3]]
    gate.open.set()
    assert await asyncio.gather(*results) == [0, 1, 2, 3]


async def test_clients_that_submit_again_at_once_travel_together() -> None:
    """Although one of them comes first, so that its next item could run alone between those of the others."""
    sizes: list[int] = []

    async def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        for _ in range(10):
            await asyncio.sleep(0)
        return items

    async def submit_again_and_again(client: int) -> None:
        for _ in range(5):
            await batcher.submit(client)
            await asyncio.sleep(0)

    batcher = MicroBatcher(run, max_batch=100, max_concurrency=4, max_queue=100, deadline=5, min_batch=50)
    first = asyncio.ensure_future(submit_again_and_again(0))
    await run_other_tasks()
    await asyncio.gather(first, *[submit_again_and_again(client) for client in range(1, 11)])
    assert sizes == [1, 11, 11, 11, 11, 10]


@in_virtual_time
async def test_micro_batch_that_takes_long_keeps_no_others_waiting() -> None:
    """Its submissions may need something that is slow, for example one node of the store."""
    slow = asyncio.Event()
    started: list[tuple[float, list[int]]] = []
    now = asyncio.get_running_loop().time

    async def run(items: list[int]) -> list[int]:
        started.append((round(now() - begin, 3), items))
        await (slow.wait() if 0 in items else asyncio.sleep(0.01))
        return items

    batcher = MicroBatcher(run, max_batch=10, max_concurrency=2, max_queue=100, deadline=5, min_batch=50, patience=0.05)
    begin = now()
    results = [asyncio.ensure_future(batcher.submit(0))]
    await asyncio.sleep(0.02)
    results += [asyncio.ensure_future(batcher.submit(number)) for number in (1, 2)]
    await asyncio.sleep(0.2)
    assert [result.done() for result in results] == [False, True, True]
    results.append(asyncio.ensure_future(batcher.submit(3)))
    await asyncio.sleep(0.02)
    assert results[-1].done()
    assert started == [(0.0, [0]), (0.05, [1, 2]), (0.22, [3])]
    slow.set()
    assert await asyncio.gather(*results) == [0, 1, 2, 3]


async def test_deadline_ends_only_the_waits_that_exceed_it() -> None:
    """The item of a caller that timed out still runs, and the other callers get their results."""
    gate = Gate()
    batcher = MicroBatcher(gate.run, max_batch=1, max_concurrency=1, max_queue=100, deadline=0.1)
    first = asyncio.ensure_future(batcher.submit(1))
    await asyncio.sleep(0.06)
    second = asyncio.ensure_future(batcher.submit(2))
    with pytest.raises(TimeoutError):
        await first
    assert not second.done()
    gate.open.set()
    assert await second == 2
    assert gate.batches == [[1], [2]]
    assert await batcher.submit(3) == 3


async def test_item_is_refused_if_queue_is_full() -> None:
    gate = Gate()
    batcher = MicroBatcher(gate.run, max_batch=1, max_concurrency=1, max_queue=1, deadline=5)
    results = [asyncio.ensure_future(batcher.submit(1))]
    await run_other_tasks()
    results.append(asyncio.ensure_future(batcher.submit(2)))
    await run_other_tasks()
    with pytest.raises(QueueFull):
        await batcher.submit(3)
    gate.open.set()
    assert await asyncio.gather(*results) == [1, 2]


async def test_customers_are_served_in_turn() -> None:
    """One customer has nine items waiting when the other's single item arrives."""
    gate = Gate()
    batcher = MicroBatcher(
        gate.run, max_batch=2, max_concurrency=1, max_queue=100, deadline=5, customer_of=lambda item: str(item // 100)
    )
    results = [asyncio.ensure_future(batcher.submit(item)) for item in (100, *range(101, 110), 200)]
    gate.open.set()
    await asyncio.gather(*results)
    assert gate.batches[0] == [100, 200]
    assert sorted(item for batch in gate.batches for item in batch) == [*range(100, 110), 200]


async def test_full_queue_takes_an_item_of_another_customer_in_place_of_the_largest_ones() -> None:
    """Customer 1 fills the queue. It gets no further item in; customers 2 and 3 do, until all have as many."""
    gate = Gate()
    batcher = MicroBatcher(
        gate.run, max_batch=1, max_concurrency=1, max_queue=4, deadline=5, customer_of=lambda item: str(item // 100)
    )
    running = asyncio.ensure_future(batcher.submit(1))
    await run_other_tasks()
    first = [asyncio.ensure_future(batcher.submit(item)) for item in range(100, 104)]
    await run_other_tasks()
    with pytest.raises(QueueFull):
        await batcher.submit(104)
    others = [asyncio.ensure_future(batcher.submit(item)) for item in (200, 300)]
    await run_other_tasks()
    for displaced in first[2:]:
        with pytest.raises(QueueFull):
            await displaced
    with pytest.raises(QueueFull):
        await batcher.submit(201)
    gate.open.set()
    assert await asyncio.gather(running, *first[:2], *others) == [1, 100, 101, 200, 300]


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5), st.integers(1, 3), st.integers(1, 8), st.integers(0, 2)
)
def test_every_item_runs_once_and_gets_its_own_result(
    pauses: list[int], max_batch: int, max_concurrency: int, min_batch: int, run_iterations: int
) -> None:
    """Property: this holds for every order of arrival. Pauses and run times are in iterations of the event loop."""
    items_run: list[int] = []

    async def run(items: list[int]) -> list[int]:
        items_run.extend(items)
        for _ in range(run_iterations):
            await asyncio.sleep(0)
        return [item * 2 for item in items]

    async def main() -> list[int]:
        batcher = MicroBatcher(
            run,
            max_batch=max_batch,
            max_concurrency=max_concurrency,
            max_queue=1000,
            deadline=5,
            min_batch=min_batch,
        )
        results = []
        for item, pause in enumerate(pauses):
            for _ in range(pause):
                await asyncio.sleep(0)
            results.append(asyncio.ensure_future(batcher.submit(item)))
        return await asyncio.gather(*results)

    assert asyncio.run(main()) == [item * 2 for item in range(len(pauses))]
    assert sorted(items_run) == list(range(len(pauses)))


async def test_failed_item_is_freed_without_the_garbage_collector() -> None:
    """At the latest when its deadline has passed. Otherwise bodies would add up in an outage."""

    async def run(_: list[bytes]) -> list[bytes]:
        raise ConnectionError

    batcher = MicroBatcher(run, max_batch=10, max_concurrency=1, max_queue=10, deadline=0.02)
    item = bytes(bytearray(1000))
    gc.disable()
    try:
        before = sys.getrefcount(item)
        with contextlib.suppress(ConnectionError):
            await batcher.submit(item)
        await asyncio.sleep(0.1)
        assert sys.getrefcount(item) == before
    finally:
        gc.enable()
