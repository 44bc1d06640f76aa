"""Random schedules within a fixed budget, and schedules that test one guarantee each."""

import math

import pytest

from ingest.domain.topology import WEBHOOK_DISPATCH
from tests.simulation.draw import draw
from tests.simulation.run import check, explain, run_schedules
from tests.simulation.schedule import FullQueue, Schedule, Submit
from tests.simulation.world import World

pytestmark = pytest.mark.usefixtures("quiet")

SCHEDULES = 8000
SEED = 1


@pytest.mark.timeout(600)
def test_random_schedules_break_no_guarantee() -> None:
    result = run_schedules(SEED, schedules=SCHEDULES)
    assert result.failure is None, explain(result.failure)
    assert result.schedules == SCHEDULES


def test_same_seed_is_the_same_run() -> None:
    first, second = World(draw(7)), World(draw(7))
    for world in (first, second):
        world.run()
    assert [a.status for a in first.attempts] == [a.status for a in second.attempts]
    assert first.loop.time() == second.loop.time()


def test_checker_reports_a_schedule_that_does_not_end() -> None:
    """A queue that stays full leaves its submission unfinished."""
    submit = Submit(at=1.0, customer="paying", key="w", body=2, direct=True)
    problems = check(Schedule(1, (FullQueue(at=0.5, queue=WEBHOOK_DISPATCH, seconds=math.inf), submit)))
    assert [problem for problem in problems if problem.startswith("not finished in time")]
