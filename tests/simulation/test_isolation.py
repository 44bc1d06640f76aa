"""Schedules in which the trouble of one customer must not delay another one."""

import json

import pytest

from ingest.domain.topology import CONSENSUS_TASKS, INGEST_DEAD, WEBHOOK_DISPATCH
from tests.simulation.checker import violations
from tests.simulation.queues import FEEDBACK, Stored
from tests.simulation.schedule import Action, FullQueue, Outage, Schedule, Submit
from tests.simulation.world import World

pytestmark = pytest.mark.usefixtures("quiet")

LONG = 600.0
"""Seconds for which a queue is full."""
BOUND = 4.0
"""Seconds within which an undisturbed submission is accepted."""


def others(at: float) -> list[Action]:
    """12 single tasks and batches of another customer, over HTTP and directly, one every half a second."""
    return [Submit(at + n / 2, "strict", f"o{n}", body=1, items=2 * (n % 2), direct=n % 3 == 0) for n in range(12)]


def run(actions: list[Action]) -> World:
    world = World(Schedule(1, tuple(sorted(actions, key=lambda action: action.at))), settle=LONG + 120.0)
    world.run()
    return world


def latest(world: World) -> float:
    """When the last task of the other customer was accepted, in virtual seconds."""
    accepted = [(json.loads(stored.message.body)["data"], stored.at) for stored in _ready(world, CONSENSUS_TASKS)]
    return max(at for data, at in accepted if data["cust_id"] == "strict")


def _ready(world: World, queue: str) -> list[Stored]:
    return list(world.broker.queues[queue].ready)


@pytest.mark.parametrize("items", [0, 2])
def test_full_queue_of_webhook_events_delays_only_submissions_with_a_webhook(items: int) -> None:
    refused = [Submit(1.0, "paying", f"w{n}", body=2, items=items, direct=True) for n in range(30)]
    world = run([FullQueue(0.5, WEBHOOK_DISPATCH, LONG), *refused, *others(3.0)])
    assert violations(world) == []
    assert latest(world) < 8.5 + BOUND


@pytest.mark.parametrize("items", [0, 2])
def test_full_dead_letter_queue_delays_only_rejected_submissions(items: int) -> None:
    """Of 30 submissions, two or four fit into the quota. The others wait until their rejection can be published."""
    submissions = [Submit(1.0, "free", f"f{n}", body=1, items=items, direct=True) for n in range(30)]
    world = run([FullQueue(0.5, INGEST_DEAD, LONG), *submissions, *others(3.0)])
    assert violations(world) == []
    assert latest(world) < 8.5 + BOUND
    assert len(_ready(world, INGEST_DEAD)) == 30 - (2 if items else 4)


def test_rejected_submission_is_reported_once_however_long_the_dead_letter_queue_is_full() -> None:
    first = Submit(1.0, "strict", "k", body=1, direct=True)
    conflicting = Submit(2.0, "strict", "k", body=2, direct=True)
    world = run([first, FullQueue(1.5, INGEST_DEAD, 60.0), conflicting])
    assert violations(world) == []
    # At the end of a schedule, an operator may redrive it, which rejects it again.
    assert len([report for report in _ready(world, FEEDBACK) if report.at < 120.0]) == 1


def test_contended_submissions_delay_no_other_customer() -> None:
    """A repeat with another body waits while it is in doubt whether the first one was published."""
    outages: list[Action] = [Outage(1.0, "broker", 3.0, shim) for shim in ("shim0", "shim1")]
    in_doubt = [Submit(1.5, "paying", f"d{n}", body=1, attempts=1) for n in range(40)]
    repeats = [Submit(9.0, "paying", f"d{n}", body=2, direct=True) for n in range(40)]
    world = run([*outages, *in_doubt, *repeats, *others(10.0)])
    assert violations(world) == []
    assert latest(world) < 15.5 + BOUND
