"""Schedules in which a process crashes at every moment between two steps."""

import pytest

from tests.simulation.checker import violations
from tests.simulation.customers import FREE
from tests.simulation.schedule import WORKERS, Crash, Schedule, Submit
from tests.simulation.world import World

pytestmark = pytest.mark.usefixtures("quiet")

QUOTA = 4
"""The tasks of `free`."""
SUBMITTED_AT = 1.0


def test_submission_whose_events_are_out_is_not_refused_for_the_quota() -> None:
    """All workers crash together, when the quota is used up. What they held is delivered again."""
    problems = []
    for number in range(120):
        at = SUBMITTED_AT + number * 0.002
        submits = [Submit(SUBMITTED_AT, FREE, f"k{n}", body=1, direct=True) for n in range(QUOTA)]
        schedule = Schedule(number, (*submits, *[Crash(at, worker, 1.0) for worker in WORKERS]))
        world = World(schedule)
        world.run()
        problems += violations(world)
    assert problems == []
