"""SIGKILL of workers and shims at exact boundaries, SIGTERM under load."""

import asyncio
import time

from tests.chaos import points
from tests.chaos.faults import fault, need
from tests.chaos.history import Submission
from tests.chaos.world import World

_REACH = 20.0


def _kill(kind: str, point: str) -> None:
    async def inject(world: World) -> str:
        process = world.rng.choice(world.shims if kind == "shim" else world.workers)
        found = await process.killed_at(point, _REACH)
        need(found, f"{process.name} did not reach {point} within {_REACH:.0f} s")
        assert found is not None
        world.history.kills += 1
        return f"{process.name} (pid {found['pid']}) killed itself {point}: {found['detail']}"

    inject.__doc__ = f"SIGKILL of a {kind}, {point.replace('-', ' ')}"
    fault(f"{kind}-kill-{point}")(inject)


for _point in (points.AFTER_CLAIM, points.MID_EXPANSION, points.AFTER_PUBLISH, points.AFTER_SETTLE):
    _kill("worker", _point)
for _point in (points.AFTER_CLAIM, points.AFTER_CHARGE, points.AFTER_PUBLISH):
    _kill("shim", _point)


@fault("worker-term")
async def worker_term(world: World) -> str:
    """SIGTERM of a worker under load: exit code 0, nothing left unacknowledged"""
    process = world.rng.choice(world.workers)
    await asyncio.sleep(6)  # a stop in the middle of an outage gives back what it cannot finish
    code, left = await process.terminate()
    need(left, f"{process.name} left no note")
    if code or any(left.values()):
        world.history.complaints.append(f"SIGTERM of {process.name}: exit code {code}, unacknowledged {left}")
    return f"{process.name} exit code {code}, unacknowledged at its end: {left}"


@fault("shim-term")
async def shim_term(world: World) -> str:
    """SIGTERM of a shim under load: exit code 0, and every request that it accepted was answered"""
    index = world.rng.randrange(len(world.shims))
    start = time.monotonic()
    code, _ = await world.shims[index].terminate()
    end = time.monotonic()
    if code:
        world.history.complaints.append(f"SIGTERM of {world.shims[index].name}: exit code {code}")
    asked, broken = _asked(world, index, start, end)
    for submission, position in broken:
        later = [each for each in submission.attempts[position + 1 :] if each.outcome in ("accepted", "replay")]
        alone = len({each.shim for each in submission.attempts}) == 1 and len(submission.attempts) <= 2
        if later and later[0].outcome == "replay" and alone:
            world.history.complaints.append(
                f"a request was accepted by a stopping shim, and its client not told: {submission.key}"
            )
    name, seconds = world.shims[index].name, end - start
    return f"{name} exit code {code} after {seconds:.1f} s; {asked} requests meanwhile, {len(broken)} without an answer"


def _asked(world: World, index: int, start: float, end: float) -> tuple[int, list[tuple[Submission, int]]]:
    """How many requests a shim had in that time, and those that it did not answer, as (submission, attempt)."""
    asked, broken = 0, []
    for submission in world.history.submissions[-2000:]:
        for position, attempt in enumerate(submission.attempts):
            if attempt.shim == index and attempt.end >= start and attempt.start <= end:
                asked += 1
                if attempt.outcome == "unknown":
                    broken.append((submission, position))
    return asked, broken
