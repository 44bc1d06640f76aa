"""Waits that other code relies on."""

import asyncio

import pytest

from ingest.waiting import to_the_end


async def test_step_ends_although_its_caller_is_cancelled_twice() -> None:
    """A person who presses Stop twice must not leave a step running that nothing waits for."""
    gate, ended = asyncio.Event(), False

    async def step() -> None:
        nonlocal ended
        await gate.wait()
        ended = True

    caller = asyncio.create_task(to_the_end(step()))
    for _ in range(2):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended
