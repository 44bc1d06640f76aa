"""Random schedules within a fixed budget, and schedules that test one guarantee each."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from ingest.domain.topology import CONSENSUS_TASKS, WEBHOOK_DISPATCH
from tests.simulation.checker import violations
from tests.simulation.draw import draw
from tests.simulation.run import check, explain, run_schedules
from tests.simulation.schedule import Action, FullQueue, Schedule, Submit
from tests.simulation.world import World

SCHEDULES = 20_000
SEED = 1


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Logs of simulated outages are not worth their time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


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


def test_tasks_pass_while_the_queue_of_other_tasks_events_is_full() -> None:
    """30 tasks with a webhook are refused by the broker for an hour. 300 tasks without one pass within 15 s."""
    refused = [Submit(at=1.0, customer="paying", key=f"w{n}", body=2, direct=True) for n in range(30)]
    others = [Submit(at=2.0, customer="strict", key=f"k{n}", body=1, direct=n % 2 == 0) for n in range(300)]
    actions: list[Action] = [FullQueue(at=0.5, queue=WEBHOOK_DISPATCH, seconds=3600.0), *refused, *others]
    world = World(Schedule(1, tuple(actions)), settle=4000.0)
    world.run()
    assert violations(world) == []
    arrived = [stored.at for stored in world.broker.queues[CONSENSUS_TASKS].ready if b"/1/0" in stored.message.body]
    assert len(arrived) == 300
    assert max(arrived) < 2.2 + 15.0


def test_checker_reports_a_schedule_that_does_not_end() -> None:
    """A queue that stays full longer than the time to settle leaves its submission unfinished."""
    submit = Submit(at=1.0, customer="paying", key="w", body=2, direct=True)
    problems = check(Schedule(1, (FullQueue(at=0.5, queue=WEBHOOK_DISPATCH, seconds=100_000.0), submit)))
    assert [problem for problem in problems if problem.startswith("not finished in time")]
