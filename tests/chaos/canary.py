"""Measures recovery: one submission through each shim and one straight to the broker, until their events arrive."""

import asyncio
import time
from typing import Final

from tests.chaos.world import World

GIVE_UP: Final = 90.0


async def seconds_to_recover(world: World) -> float | None:
    """Return the seconds until submissions pass through every entry point; None if that takes more than GIVE_UP."""
    start = time.monotonic()
    try:
        async with asyncio.timeout(GIVE_UP):
            await asyncio.gather(*[_pass_through(world, shim) for shim in (0, 1, None)])
    except TimeoutError:
        return None
    return time.monotonic() - start


async def _pass_through(world: World, shim: int | None) -> None:
    """Send new submissions to this shim (None: to the broker) until one is accepted and its event arrives."""
    while True:
        number = len(world.history.submissions)
        submission = world.workload.new_single("acme", f"canary-{number}")
        if shim is None:
            attempt = await world.workload.produce(submission, f"canary-{number}")
        else:
            attempt = await world.workload.post(submission, shim)
        if attempt.outcome in ("accepted", "replay", "confirmed") and await _event_arrives(world, submission.items[0]):
            return
        await asyncio.sleep(0.25)


async def _event_arrives(world: World, item: str) -> bool:
    """Whether the item's event arrives within three seconds. The checker finds events that never arrive."""
    url = f"https://cdn.example.com/{item}"
    start = len(world.history.seen) - 50
    for _ in range(30):
        if any(seen.data.get("data_url") == url for seen in world.history.seen[max(0, start) :]):
            return True
        await asyncio.sleep(0.1)
    return False
