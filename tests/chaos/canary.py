"""Is all well? One submission through each shim and one straight to the broker, seen at the far end."""

import asyncio
import time
from typing import Final

from tests.chaos.world import World

GIVE_UP: Final = 90.0


async def recovered(world: World) -> float | None:
    """Seconds until submissions go through on every way again; None where that takes more than GIVE_UP."""
    start = time.monotonic()
    try:
        async with asyncio.timeout(GIVE_UP):
            await asyncio.gather(*[_through(world, shim) for shim in (0, 1, None)])
    except TimeoutError:
        return None
    return time.monotonic() - start


async def _through(world: World, shim: int | None) -> None:
    """Each time another submission: it is the present that counts."""
    while True:
        number = len(world.history.submissions)
        submission = world.workload.single("acme", f"canary-{number}")
        if shim is None:
            attempt = await world.workload.produce(submission, f"canary-{number}")
        else:
            attempt = await world.workload.post(submission, shim)
        if attempt.outcome in ("accepted", "replay", "confirmed") and await _seen(world, submission.items[0]):
            return
        await asyncio.sleep(0.25)


async def _seen(world: World, marker: str) -> bool:
    """Whether its event comes within a few seconds; it does in the end, whatever is said here."""
    url = f"https://cdn.example.com/{marker}"
    start = len(world.history.seen) - 50
    for _ in range(30):
        if any(seen.data.get("data_url") == url for seen in world.history.seen[max(0, start) :]):
            return True
        await asyncio.sleep(0.1)
    return False
