"""Cohorts of requests."""

import asyncio
import contextvars

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.shim.batcher import MicroBatcher, QueueFull


async def test_a_micro_batch_does_not_log_under_the_first_ones_name() -> None:
    """What is bound for one request is not bound for the micro-batch; what is bound for the process is."""
    seen: list[dict[str, object]] = []

    async def run(items: list[int]) -> list[int]:
        seen.append(structlog.contextvars.get_contextvars())
        return items

    def make() -> MicroBatcher[int, int]:
        structlog.contextvars.bind_contextvars(role="serve")
        return MicroBatcher(run, max_batch=10, max_concurrency=1, max_queue=10, deadline=5)

    batcher = contextvars.copy_context().run(make)
    with structlog.contextvars.bound_contextvars(request_id="r"):
        assert await batcher.submit(1) == 1
    assert seen == [{"role": "serve"}]


class Gate:
    """Runs batches that end when they are told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.open.wait()
        return items


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_further_micro_batch_begins_for_a_crowd_only() -> None:
    """One item goes at once; while it is under way others wait, until they fill a second micro-batch."""
    gate = Gate()
    batcher = MicroBatcher(gate.run, max_batch=10, max_concurrency=2, max_queue=100, deadline=5, min_batch=3)
    waiting = [asyncio.ensure_future(batcher.submit(0))]
    await settled()
    for item in (1, 2):
        waiting.append(asyncio.ensure_future(batcher.submit(item)))
        await settled()
    assert gate.batches == [[0]]
    waiting.append(asyncio.ensure_future(batcher.submit(3)))
    await settled()
    assert gate.batches == [[0], [1, 2, 3]]
    gate.open.set()
    assert await asyncio.gather(*waiting) == [0, 1, 2, 3]


async def test_time_limits() -> None:
    """Who waits too long hears TimeoutError, the first first; the work goes on and others get their results."""
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


async def test_full() -> None:
    """More than may wait is refused at once."""
    gate = Gate()
    batcher = MicroBatcher(gate.run, max_batch=1, max_concurrency=1, max_queue=1, deadline=5)
    waiting = [asyncio.ensure_future(batcher.submit(1))]
    await settled()
    waiting.append(asyncio.ensure_future(batcher.submit(2)))
    await settled()
    with pytest.raises(QueueFull):
        await batcher.submit(3)
    gate.open.set()
    assert await asyncio.gather(*waiting) == [1, 2]


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5), st.integers(1, 3), st.integers(1, 8), st.integers(0, 2)
)
def test_every_item_gets_its_own_result(pauses: list[int], size: int, slots: int, min_batch: int, work: int) -> None:
    """Whatever arrives when: each is run once, and nothing waits for ever."""
    ran: list[int] = []

    async def run(items: list[int]) -> list[int]:
        ran.extend(items)
        for _ in range(work):
            await asyncio.sleep(0)
        return [item * 2 for item in items]

    async def main() -> list[int]:
        batcher = MicroBatcher(
            run, max_batch=size, max_concurrency=slots, max_queue=1000, deadline=5, min_batch=min_batch
        )
        waiting = []
        for item, pause in enumerate(pauses):
            for _ in range(pause):
                await asyncio.sleep(0)
            waiting.append(asyncio.ensure_future(batcher.submit(item)))
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [item * 2 for item in range(len(pauses))]
    assert sorted(ran) == list(range(len(pauses)))
