"""Runs many schedules, in several processes, and shortens a failing one to the actions that it needs."""

import logging
import multiprocessing
import os
import re
import time
from collections.abc import Iterator

import msgspec
import structlog

from tests.simulation.checker import violations
from tests.simulation.draw import draw
from tests.simulation.loop import Stuck
from tests.simulation.schedule import Schedule
from tests.simulation.world import World

_CHUNK = 50
"""Schedules that a process runs before it reports."""


class Failure(msgspec.Struct, frozen=True):
    """A schedule that breaks guarantees, and the shortest part of it that still does."""

    schedule: Schedule
    problems: list[str]
    shortened: Schedule


class Result(msgspec.Struct, frozen=True):
    """`schedules` were run, up to the first that fails; `failure` is that one, None if all were good."""

    schedules: int
    failure: Failure | None


def check(schedule: Schedule) -> list[str]:
    """Run one schedule; return its violations."""
    world = World(schedule)
    try:
        world.run()
    except Stuck as error:
        return [f"stuck: {error}"]
    return violations(world)


def run_schedules(seed: int, *, seconds: float = 3600.0, schedules: int | None = None) -> Result:
    """Run schedules from `seed` on until one fails, the time is over, or so many have run."""
    _quiet()
    end = time.monotonic() + seconds
    count = 0
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), _quiet) as pool:
        for failing in pool.imap(_first_failing, _chunks(seed, schedules)):
            count += _CHUNK
            if failing is not None:
                schedule = draw(failing)
                return Result(failing - seed + 1, Failure(schedule, check(schedule), shorten(schedule)))
            if time.monotonic() >= end:
                break
    return Result(count if schedules is None else min(count, schedules), None)


def shorten(schedule: Schedule) -> Schedule:
    """Drop actions and skews as long as the schedule still breaks one of the same guarantees."""
    broken = _kinds(check(schedule))
    changed = True
    while changed:
        changed = False
        without = msgspec.structs.replace(schedule, skews={})
        if schedule.skews and broken & _kinds(check(without)):
            schedule, changed = without, True
        for index in range(len(schedule.actions) - 1, -1, -1):
            actions = schedule.actions[:index] + schedule.actions[index + 1 :]
            shorter = msgspec.structs.replace(schedule, actions=actions)
            if broken & _kinds(check(shorter)):
                schedule, changed = shorter, True
    return schedule


def _kinds(problems: list[str]) -> set[str]:
    """Return the problems without ids, keys and numbers."""
    return {re.sub(r"\b(?:tsk|bat)_\w+|[\w.]*\d[\w.]*|\[.*\]", "", problem) for problem in problems}


def explain(failure: Failure | None) -> str:
    """Return what failed, for people."""
    if failure is None:
        return "every schedule was good"
    lines = [f"seed {failure.schedule.seed} breaks guarantees:", *[f"  {problem}" for problem in failure.problems]]
    lines.append(f"shortest schedule ({len(failure.shortened.actions)} actions):")
    lines += [f"  {action}" for action in failure.shortened.actions]
    if failure.shortened.skews:
        lines.append(f"  clocks: {failure.shortened.skews}")
    lines += [f"  -> {problem}" for problem in check(failure.shortened)]
    return "\n".join(lines)


def _chunks(seed: int, schedules: int | None) -> Iterator[range]:
    end = None if schedules is None else seed + schedules
    while end is None or seed < end:
        yield range(seed, seed + _CHUNK if end is None else min(seed + _CHUNK, end))
        seed += _CHUNK


def _first_failing(seeds: range) -> int | None:
    return next((seed for seed in seeds if check(draw(seed))), None)


def _quiet() -> None:
    """Logs of simulated outages are not worth their time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
