"""Micro-batches that fail, callers that give up, and how many items run and wait; in virtual time."""

import asyncio
import weakref
from collections.abc import Awaitable
from typing import Any

import pytest

from ingest.fair_queue import QueueFull
from ingest.shim.batcher import MicroBatcher
from tests.simulation.loop import SimulatedLoop
from tests.support.virtual_time_loop import in_virtual_time


class Runs:
    """Micro-batches of a batcher. Each one takes `seconds`, then raises `error` if there is one.

    `started` has the time and the items of each, `most` is how many ran at once.
    """

    def __init__(self, *, seconds: float = 1.0, **limits: Any) -> None:
        self.started: list[tuple[float, list[int]]] = []
        self.most = 0
        self.error: BaseException | None = None
        self._seconds = seconds
        self._running = 0
        defaults = {"max_batch": 10, "max_concurrency": 1, "max_queue": 100, "deadline": 60}
        self.batcher = MicroBatcher(self._run, customer_of=lambda item: str(item // 100), **(defaults | limits))

    async def _run(self, items: list[int]) -> list[int]:
        self.started.append((asyncio.get_running_loop().time(), items))
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            await asyncio.sleep(self._seconds)
            if self.error is not None:
                raise self.error
            return items
        finally:
            self._running -= 1

    async def submit(self, *items: int) -> "list[asyncio.Task[int]]":
        """Submit items one after the other; return their tasks, after every micro-batch that can start has started."""
        tasks = []
        for item in items:
            tasks.append(asyncio.create_task(self.batcher.submit(item)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks


async def result_of(awaitable: Awaitable[int]) -> int | type[BaseException]:
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        return type(error)


async def results_of(tasks: "list[asyncio.Task[int]]") -> list[int | type[BaseException]]:
    return [await result_of(task) for task in tasks]


@in_virtual_time
async def test_error_of_a_micro_batch_is_the_result_of_its_items_only() -> None:
    """The items that wait run next."""
    runs = Runs(max_batch=2)
    runs.error = ZeroDivisionError()
    first = await runs.submit(1, 2, 3)
    assert runs.started == [(0, [1])]
    await asyncio.sleep(1)
    runs.error = None
    assert await results_of(first) == [ZeroDivisionError, 2, 3]
    assert runs.started == [(0, [1]), (1, [2, 3])]


@in_virtual_time
async def test_cancelled_micro_batch_cancels_its_callers_and_another_one_can_start() -> None:
    """What ends the micro-batch is not an error of the submission, so the callers do not get it as one."""

    class Ended(BaseException):
        """Neither an `Exception` nor a cancellation."""

    runs = Runs(min_batch=5)
    runs.error = Ended()
    assert await results_of(await runs.submit(1)) == [asyncio.CancelledError]
    runs.error = None
    assert await results_of(await runs.submit(2)) == [2]


@in_virtual_time
async def test_cancelled_micro_batch_is_not_followed_by_another_one() -> None:
    """The process ends: every task is cancelled, and what still waits does not run."""
    runs = Runs(max_batch=1)
    waiting = await runs.submit(1, 2)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    assert await results_of(waiting) == [asyncio.CancelledError] * 2
    await asyncio.sleep(10)
    assert runs.started == [(0, [1])]


@in_virtual_time
@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
async def test_caller_that_gave_up_does_not_disturb_the_others_of_its_micro_batch(error: Exception | None) -> None:
    runs = Runs()
    (running,) = await runs.submit(1)
    given_up, waiting = await runs.submit(2, 3)
    given_up.cancel()
    await result_of(running)
    runs.error = error
    assert await result_of(waiting) == (3 if error is None else ZeroDivisionError)
    assert runs.started[-1][1] == [2, 3]


@in_virtual_time
async def test_item_whose_caller_gave_up_can_give_way_to_another_customers_item() -> None:
    runs = Runs(max_queue=3)
    running = await runs.submit(1)
    first, second, given_up = await runs.submit(100, 101, 102)
    given_up.cancel()
    others = await runs.submit(200)
    assert await results_of([*running, first, second, given_up, *others]) == [1, 100, 101, asyncio.CancelledError, 200]


@in_virtual_time
async def test_queue_holds_as_many_items_as_before_after_items_gave_way_and_ran() -> None:
    runs = Runs(max_queue=2, max_batch=1)
    for _ in range(3):
        running = await runs.submit(1)
        tasks = await runs.submit(100, 101, 200, 201)
        assert await results_of(running + tasks) == [1, 100, QueueFull, 200, QueueFull]


@in_virtual_time
async def test_customer_with_one_item_less_than_the_largest_gets_no_further_item_in() -> None:
    """Otherwise the two would take each other's places in turn."""
    runs = Runs(max_queue=3)
    running = await runs.submit(1)
    tasks = await runs.submit(100, 101, 200, 201)
    assert await results_of(running + tasks) == [1, 100, 101, 200, QueueFull]


@in_virtual_time
async def test_largest_queue_gives_way_whichever_customer_came_first() -> None:
    runs = Runs(max_queue=4)
    running = await runs.submit(1)
    tasks = await runs.submit(200, 100, 101, 102, 300)
    assert await results_of(running + tasks) == [1, 200, 100, 101, QueueFull, 300]


@in_virtual_time
async def test_no_more_micro_batches_run_at_once_than_allowed() -> None:
    """Also after others have ended."""
    runs = Runs(max_batch=2, max_concurrency=2, min_batch=2)
    for _ in range(3):
        tasks = await runs.submit(*range(9))
        assert [items for _, items in runs.started] == [[0, 1], [2, 3]]
        assert await results_of(tasks) == list(range(9))
        assert (runs.most, runs.batcher._running) == (2, 0)
        runs.started.clear()


@in_virtual_time
async def test_item_that_arrives_alone_runs_at_once_however_many_ran_before() -> None:
    runs = Runs(max_concurrency=3, min_batch=3)
    for round_ in range(4):
        await results_of(await runs.submit(round_))
    assert runs.started == [(0, [0]), (1, [1]), (2, [2]), (3, [3])]


@in_virtual_time
async def test_by_default_a_second_micro_batch_needs_one_item() -> None:
    runs = Runs(max_concurrency=2)
    await results_of(await runs.submit(1, 2, 3))
    assert runs.started == [(0, [1]), (0, [2]), (1, [3])]


@in_virtual_time
async def test_customers_take_turns_across_micro_batches() -> None:
    runs = Runs(max_batch=2)
    running = await runs.submit(1)
    tasks = await runs.submit(100, 101, 102, 200, 201, 300)
    await results_of(running + tasks)
    assert [items for _, items in runs.started] == [[1], [100, 200], [300, 101], [201, 102]]


@in_virtual_time
async def test_last_customer_fills_the_rest_of_a_micro_batch() -> None:
    runs = Runs(max_batch=4)
    running = await runs.submit(1)
    tasks = await runs.submit(100, 101, 102, 103, 104, 200)
    await results_of(running + tasks)
    assert [items for _, items in runs.started] == [[1], [100, 200, 101, 102], [103, 104]]


@in_virtual_time
async def test_each_caller_waits_for_the_deadline_and_no_longer() -> None:
    """Their items run nevertheless. A caller whose result is ready in time gets it."""
    runs = Runs(seconds=4, deadline=5)
    times: list[float] = []

    async def submit(item: int, at: float) -> int | type[BaseException]:
        await asyncio.sleep(at)
        result = await result_of(runs.batcher.submit(item))
        times.append(asyncio.get_running_loop().time())
        return result

    results = await asyncio.gather(submit(1, 0), submit(2, 2), submit(3, 4.5), submit(4, 20), submit(5, 21))
    assert list(results) == [1, TimeoutError, TimeoutError, 4, TimeoutError]
    assert times == [4, 7, 9.5, 24, 26]
    assert runs.started == [(0, [1]), (4, [2]), (8, [3]), (20, [4]), (24, [5])]


@in_virtual_time
async def test_result_is_not_kept_in_memory_until_its_deadline() -> None:
    class Result:
        """Something that can be referred to weakly."""

    async def run(items: list[int]) -> list[Result]:
        return [Result() for _ in items]

    batcher = MicroBatcher(run, max_batch=1, max_concurrency=1, max_queue=1, deadline=3600)
    first = weakref.ref(await batcher.submit(1))
    await batcher.submit(2)
    assert first() is None


@in_virtual_time
async def test_one_timer_watches_the_deadlines_of_all_callers() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    tasks = await Runs(deadline=5).submit(*range(50))
    assert len(loop._timers) == 2  # the other one is that of the micro-batch
    await results_of(tasks)


@in_virtual_time
async def test_drain_waits_for_everything_that_waits_or_runs() -> None:
    runs = Runs(max_batch=1)
    await runs.batcher.drain()
    tasks = await runs.submit(1, 2, 3)
    await runs.batcher.drain()
    assert [task.done() for task in tasks] == [True] * 3
    assert asyncio.get_running_loop().time() == 3
