"""Reading large dead letters takes little memory on every broker."""

import asyncio
import time
from typing import Final

import msgspec

from ingest.domain.ports import DeadLetterQueue
from tests.contract.test_dead_letters import DeadLetterHarness, harness, rejected_message

__all__ = ["harness"]

SIZE: Final = 4 * 1024 * 1024
COUNT: Final = 30


async def filled(harness: DeadLetterHarness) -> DeadLetterQueue:
    """Open the queue with COUNT dead letters of SIZE bytes, and a prefetch that allows more than memory should hold."""
    harness.first = 100
    for number in range(COUNT):
        await harness.publish([msgspec.structs.replace(rejected_message(number), body=bytes(SIZE))])
    return await harness.open_dead_letters()


async def test_browsing_holds_few_bytes_of_large_dead_letters(harness: DeadLetterHarness) -> None:
    """A producer may send 16 MiB at a time; a list and what has arrived behind it must fit into memory."""
    queue = await filled(harness)
    lists = []
    async for deliveries in queue.browse():
        lists.append(len(deliveries))
        await asyncio.sleep(0.2)  # what the prefetch allows would arrive meanwhile
    await queue.close()
    assert sum(lists) == COUNT
    assert max(lists) * SIZE <= 32 * 1024 * 1024 + SIZE
    assert await harness.message_ids() == [f"d{number}" for number in range(COUNT)]


async def test_browsing_of_large_dead_letters_that_ends_early_closes_soon_and_loses_nothing(
    harness: DeadLetterHarness,
) -> None:
    queue = await filled(harness)
    async for _deliveries in queue.browse():
        await asyncio.sleep(0.5)
        break
    start = time.monotonic()
    await queue.close()
    assert time.monotonic() - start < 5
    assert set(await harness.message_ids()) == {f"d{number}" for number in range(COUNT)}
