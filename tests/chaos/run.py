"""One run: load, faults, drain, replay, check."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

from tests.chaos import canary, faults, report, schedule
from tests.chaos.checker import Result, check
from tests.chaos.history import Injected, Submission
from tests.chaos.workload import POOR
from tests.chaos.world import World

_WARM_UP: Final = 3.0
_DRAIN: Final = 90.0
_REPLAYS: Final = 300


async def run(names: Sequence[str], seconds: float, seed: int, rate: float, span: float) -> tuple[Result, str]:
    """Each fault at least once, and for at least so long. Raises Unavailable where a server cannot run here."""
    rng = random.Random(seed)
    world = World(rng, rate, span)
    start = time.monotonic()
    async with world.running():
        print(f"running after {time.monotonic() - start:.0f} s, logs in {world.directory}", flush=True)
        start = time.monotonic()
        load = asyncio.create_task(world.workload.run())
        await asyncio.sleep(_WARM_UP)
        for name, repeat in schedule.order(names, random.Random(seed)):
            if repeat and time.monotonic() - start > seconds:
                break
            if load.done():
                load.result()
            await _inject(world, name, start)
        load.cancel()
        await _drain(world)
        await _replay(world)
        await world.workload.close()
    result = check(world.history)
    return result, report.text(world.history, result, seed, time.monotonic() - start)


async def _inject(world: World, name: str, start: float) -> None:
    begun = time.monotonic()
    try:
        proof, shown = await faults.FAULTS[name](world), True
    except faults.NotShown as error:
        proof, shown = str(error), False
    except Exception as error:  # noqa: BLE001 - the run goes on, and ends with 1
        proof, shown = f"{type(error).__name__}: {error}", False
    lasted = time.monotonic() - begun
    recovery = await canary.recovered(world)
    world.history.faults.append(Injected(name, begun - start, lasted, proof, recovery, shown))
    print(f"{begun - start:6.0f} s  {name}: {proof}; recovered: {recovery and round(recovery, 1)}", flush=True)


async def _drain(world: World) -> None:
    gave_up = await world.workload.finish(_DRAIN)
    if gave_up:
        world.history.complaints.append(f"{gave_up} submissions were not answered within {_DRAIN:.0f} s of calm")
    if not await world.quiet(3.0, _DRAIN):
        world.history.complaints.append(f"the queues are not empty after {_DRAIN:.0f} s of calm")
    world.history.used = await world.used()


async def _replay(world: World) -> None:
    """Every key again, twice: what the ledger had lost is accepted anew the first time, under the same id. The second
    time nothing is: 200, and no charge."""
    known = [each for each in world.history.submissions if each.key is not None and each.known_accepted]
    known = [each for each in known if any(a.outcome in ("accepted", "replay") for a in each.attempts)]
    if world.history.truncated:
        # What the ledger has lost is accepted anew, or refused where the quota is used up meanwhile.
        known = [each for each in known if each.cust_id != POOR]
    chosen = world.rng.sample(known, min(_REPLAYS, len(known)))
    world.history.replayed = len(chosen)
    await _post_all(world, chosen)
    await world.quiet(3.0, _DRAIN)
    used, seen = await world.used(), {each.event_id for each in world.history.seen}
    for status in await _post_all(world, chosen):
        if status != 200:
            world.history.complaints.append(f"a replay was answered with {status}")
    await world.quiet(3.0, _DRAIN)
    if await world.used() != used:
        world.history.complaints.append(f"replays were charged: {used}, then {await world.used()}")
    if news := {each.event_id for each in world.history.seen} - seen:
        world.history.complaints.append(f"replays brought new events: {sorted(news)[:5]}")


async def _post_all(world: World, submissions: list[Submission]) -> list[int]:
    limit = asyncio.Semaphore(20)

    async def one(submission: Submission) -> int:
        async with limit:
            for _ in range(5):
                attempt = await world.workload.post(submission)
                if attempt.outcome not in ("unavailable", "unknown"):
                    break
                await asyncio.sleep(1)
            return attempt.status

    return await asyncio.gather(*[one(each) for each in submissions])
