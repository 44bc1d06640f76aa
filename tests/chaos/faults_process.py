"""Faults of workers and shims: SIGKILL at exact boundaries, SIGTERM under load."""

import asyncio
import time
from pathlib import Path

from ingest.domain.topology import is_admitted_queue
from tests.chaos import points
from tests.chaos.cluster import off_loop
from tests.chaos.faults import fault, require
from tests.chaos.history import Submission
from tests.chaos.world import World
from tests.servers.process import wait_until

_POINT_TIMEOUT = 20.0


def _register_kill(kind: str, point: str) -> None:
    async def inject(world: World) -> str:
        process = world.rng.choice(world.shims if kind == "shim" else world.workers)
        proof = await process.killed_at(point, _POINT_TIMEOUT)
        require(proof, f"{process.name} did not reach {point} within {_POINT_TIMEOUT:.0f} s")
        assert proof is not None
        world.history.kills += 1
        return f"{process.name} (pid {proof['pid']}) killed itself {point}: {proof['detail']}"

    inject.__doc__ = f"Kill a {kind} {point.replace('-', ' ')} (SIGKILL)"
    fault(f"{kind}-kill-{point}")(inject)


for _point in (points.AFTER_CLAIM, points.MID_EXPANSION, points.AFTER_PUBLISH, points.AFTER_SETTLE):
    _register_kill("worker", _point)
for _point in (points.AFTER_CLAIM, points.AFTER_CHARGE, points.AFTER_PUBLISH):
    _register_kill("shim", _point)


@fault("worker-term")
async def worker_term(world: World) -> str:
    """Stop a worker under load (SIGTERM): exit code 0, and every delivery is acknowledged"""
    process = world.rng.choice(world.workers)
    await asyncio.sleep(6)  # a worker that stops during an outage returns deliveries unacknowledged
    code, unacknowledged = await process.terminate()
    require(unacknowledged, f"no consumer of {process.name} wrote its closed- file")
    if code or any(unacknowledged.values()):
        world.history.complaints.append(f"SIGTERM of {process.name}: exit code {code}, unacknowledged {unacknowledged}")
    return f"{process.name} exit code {code}, unacknowledged at the end: {unacknowledged}"


@fault("shim-term")
async def shim_term(world: World) -> str:
    """Stop a shim under load (SIGTERM): exit code 0, and every request that it accepted is answered"""
    index = world.rng.randrange(len(world.shims))
    shim = world.shims[index]
    start = time.monotonic()
    code, _ = await shim.terminate()
    end = time.monotonic()
    if code:
        world.history.complaints.append(f"SIGTERM of {shim.name}: exit code {code}")
    count, unanswered = _requests_during(world, index, start, end)
    for submission, position in unanswered:
        later = [
            attempt for attempt in submission.attempts[position + 1 :] if attempt.outcome in ("accepted", "replay")
        ]
        # Only then is the unanswered request the one that the replay refers to.
        only_this_shim = len({attempt.shim for attempt in submission.attempts}) == 1 and len(submission.attempts) <= 2
        if later and later[0].outcome == "replay" and only_this_shim:
            world.history.complaints.append(f"a stopping shim accepted a request without an answer: {submission.key}")
    return (
        f"{shim.name} exit code {code} after {end - start:.1f} s; {count} requests during that time, "
        f"{len(unanswered)} without an answer"
    )


@fault("rolling-upgrade", earlier_version=True)
async def rolling_upgrade(world: World) -> str:
    """Restart each process (SIGTERM) with the other version, one after the other; first it is this version"""
    old = world.workers[0].source
    new = next(checkout for checkout in world.checkouts if checkout != old)
    # The earlier version's workers need not understand what this version's shims publish.
    is_upgrade = new == world.checkouts[-1]
    processes = (*world.workers, *world.shims) if is_upgrade else (*world.shims, *world.workers)
    side_by_side = 0
    for process in processes:
        if not is_upgrade and process is world.workers[0]:
            await off_loop(wait_until, lambda: not _admitted(world), "empty queues of the shims")
        # The fault before this one may have killed it.
        await off_loop(wait_until, lambda process=process: process.is_up, process.name)
        process.source = new
        starts = process.starts
        code, _ = await process.terminate()
        require(code == 0, f"{process.name} ended with {code}")
        await off_loop(wait_until, lambda process=process, starts=starts: process.starts > starts, process.name)
        if process is not processes[-1]:
            side_by_side += await world.successes_during(6)
    running = {Path(f"/proc/{process.pid}/cwd").readlink() for process in processes}
    require(running == {new} and side_by_side, f"running {running}, {side_by_side} attempts succeeded side by side")
    names = ("this one", "the earlier one") if is_upgrade else ("the earlier one", "this one")
    return f"{len(processes)} processes changed to {names[0]}; {side_by_side} attempts succeeded beside {names[1]}"


def _admitted(world: World) -> int:
    """Return how many messages are in the queues of the shims."""
    return sum(depth for queue, depth in world.cluster.depths().items() if is_admitted_queue(queue))


def _requests_during(world: World, index: int, start: float, end: float) -> tuple[int, list[tuple[Submission, int]]]:
    """Return how many requests this shim had then, and the unanswered ones as (submission, index of the attempt)."""
    count = 0
    unanswered = []
    for submission in world.history.submissions[-2000:]:
        for position, attempt in enumerate(submission.attempts):
            if attempt.shim == index and attempt.end >= start and attempt.start <= end:
                count += 1
                if attempt.outcome == "unknown":
                    unanswered.append((submission, position))
    return count, unanswered
