"""Runs load and faults, drains, replays keys, and checks."""

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


async def run(
    names: Sequence[str],
    seconds: float,
    seed: int,
    rate: float,
    span: float,
    aerospike_nodes: int,
    earlier: str | None,
) -> tuple[Result, str]:
    """Inject each fault at least once, for at least `seconds` in all; return the result and the report.

    Raises:
        Unavailable: a server cannot run on this machine.
    """
    rng = random.Random(seed)
    world = World(rng, rate, span, aerospike_nodes, earlier)
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
    begin = time.monotonic()
    try:
        proof, shown = await faults.FAULTS[name](world), True
    except faults.NotShown as error:
        proof, shown = str(error), False
    except Exception as error:  # noqa: BLE001 - the run continues, and its exit code is 1
        proof, shown = f"{type(error).__name__}: {error}", False
    lasted = time.monotonic() - begin
    recovery = await canary.seconds_to_recover(world)
    world.history.faults.append(Injected(name, begin - start, lasted, proof, recovery, shown))
    print(f"{begin - start:6.0f} s  {name}: {proof}; recovered: {recovery and round(recovery, 1)}", flush=True)


async def _drain(world: World) -> None:
    unanswered = await world.workload.finish(_DRAIN)
    if unanswered:
        world.history.complaints.append(f"{unanswered} submissions got no answer within {_DRAIN:.0f} s without faults")
    if not await world.quiet(3.0, _DRAIN):
        world.history.complaints.append(f"the queues are not empty after {_DRAIN:.0f} s without faults")
    world.history.used = await world.used()


async def _replay(world: World) -> None:
    """Replay a sample of keys twice; the second time must be answered 200, without a charge and without a new event.

    The first time, submissions that the ledger has lost are accepted again, under the same id.
    """
    known = [
        submission
        for submission in world.history.submissions
        if submission.key is not None
        and any(attempt.outcome in ("accepted", "replay") for attempt in submission.attempts)
    ]
    if world.history.truncated or world.history.splits:
        # A submission that the ledger has lost is refused if the customer's quota is used up now.
        known = [submission for submission in known if submission.cust_id != POOR]
    chosen = world.rng.sample(known, min(_REPLAYS, len(known)))
    world.history.replayed = len(chosen)
    await _post_all(world, chosen)
    await world.quiet(3.0, _DRAIN)
    used, event_ids = await world.used(), {seen.event_id for seen in world.history.seen}
    for status in await _post_all(world, chosen):
        if status != 200:
            world.history.complaints.append(f"a replay was answered with {status}")
    await world.quiet(3.0, _DRAIN)
    if await world.used() != used:
        world.history.complaints.append(f"replays were charged: {used}, then {await world.used()}")
    if new_event_ids := {seen.event_id for seen in world.history.seen} - event_ids:
        world.history.complaints.append(f"replays led to new events: {sorted(new_event_ids)[:5]}")


async def _post_all(world: World, submissions: list[Submission]) -> list[int]:
    """Post each submission until it is answered, at most five times; return the last status of each."""
    limit = asyncio.Semaphore(20)

    async def post(submission: Submission) -> int:
        async with limit:
            for _ in range(5):
                attempt = await world.workload.post(submission)
                if attempt.outcome not in ("unavailable", "unknown"):
                    break
                await asyncio.sleep(1)
            return attempt.status

    return await asyncio.gather(*[post(submission) for submission in submissions])
