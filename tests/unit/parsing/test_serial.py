"""One item at a time: customers get equal shares of the time, and the event loop is left to others."""

import asyncio

import pytest

from ingest.parsing.serial import SerialExecutor
from tests.support.virtual_time_loop import in_virtual_time


class Item:
    """An item that runs for some seconds. If they are negative, it fails."""

    def __init__(self, customer: str, seconds: float) -> None:
        self.customer = customer
        self.seconds = seconds


async def run(item: Item) -> float:
    """Return the time at the end of the item."""
    if item.seconds < 0:
        raise ValueError("negative")
    await asyncio.sleep(item.seconds)
    return asyncio.get_running_loop().time()


def executor(*, holds_loop: bool = False) -> SerialExecutor[Item, float]:
    return SerialExecutor(run, customer_of=lambda item: item.customer, max_waiting=1000, holds_loop=holds_loop)


async def ends(executor: SerialExecutor[Item, float], *items: Item) -> list[float]:
    """Submit the items at once; return when each ended."""
    return await asyncio.gather(*[executor.submit(item) for item in items])


@in_virtual_time
async def test_items_of_one_customer_run_one_after_another() -> None:
    assert await ends(executor(), *[Item("a", 1)] * 3) == [1, 2, 3]


@in_virtual_time
async def test_customer_with_slow_items_gets_half_of_the_time() -> None:
    """The other one's 50 quick items take 0.5 s in all. They wait for at most two of the slow ones."""
    times = await ends(executor(), *[Item("slow", 0.5)] * 20, *[Item("quick", 0.01)] * 50)
    assert times[20] == 0.51
    assert times[-1] <= 1.01
    assert times[19] == pytest.approx(10.5)


@in_virtual_time
async def test_customer_who_used_nothing_for_long_has_saved_nothing() -> None:
    """After 100 s of one customer, both get equal shares."""
    shared = executor()
    await ends(shared, *[Item("a", 1)] * 100)
    times = await ends(shared, *[Item("a", 1)] * 3, *[Item("b", 1)] * 3)
    assert sorted(times[:3]) == [102, 104, 106]


@in_virtual_time
async def test_error_is_raised_to_the_caller_of_its_item_only() -> None:
    shared = executor()
    results = await asyncio.gather(
        *[shared.submit(Item("a", seconds)) for seconds in (1, -1, 1)], return_exceptions=True
    )
    assert results[0::2] == [1, 2]
    assert isinstance(results[1], ValueError)


@in_virtual_time
async def test_item_of_a_caller_that_gave_up_does_not_run() -> None:
    shared = executor()
    submissions = [asyncio.ensure_future(shared.submit(Item("a", 1))) for _ in range(3)]
    await asyncio.sleep(0.5)
    submissions[1].cancel()
    results = await asyncio.gather(*submissions, return_exceptions=True)
    assert (results[0], results[2]) == (1, 2)


@in_virtual_time
async def test_loop_is_left_to_others_for_as_long_as_an_item_held_it() -> None:
    assert await ends(executor(holds_loop=True), *[Item("a", 1)] * 3) == [1, 3, 5]


@in_virtual_time
async def test_close_cancels_what_waits_and_runs() -> None:
    shared = executor()
    submissions = [asyncio.ensure_future(shared.submit(Item("a", 1))) for _ in range(3)]
    await asyncio.sleep(0.5)
    await shared.close()
    await asyncio.wait(submissions)
    assert all(submission.cancelled() for submission in submissions)
