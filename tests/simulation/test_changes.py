"""Schedules in which time passes or an operator changes something while submissions are in progress."""

import json
from typing import Any

import msgspec
import pytest

from ingest.domain.topology import ADMITTED_QUEUES, CONSENSUS_TASKS, INGEST_DEAD, WEBHOOK_DISPATCH
from tests.simulation.checker import violations
from tests.simulation.customers import BRIEF, FREE, PAYING, RETENTION, STRICT
from tests.simulation.queues import FEEDBACK
from tests.simulation.schedule import (
    SHIMS,
    WORKERS,
    Action,
    Doubt,
    FullQueue,
    LostConnection,
    LostMessages,
    MonthEnd,
    Outage,
    Schedule,
    SetQuota,
    SetWebhook,
    Stop,
    Submit,
)
from tests.simulation.world import World

pytestmark = pytest.mark.usefixtures("quiet")


def run(*actions: Action, seed: int = 1) -> World:
    """Run a schedule that breaks no guarantee."""
    world = World(Schedule(seed, tuple(sorted(actions, key=lambda action: action.at))))
    world.run()
    assert violations(world) == []
    return world


def statuses(world: World) -> list[int]:
    """The answers to all attempts."""
    return [attempt.status for attempt in world.attempts]


def events(world: World) -> list[dict[str, Any]]:
    """The data of the acceptance events of all tasks."""
    return [json.loads(stored.message.body)["data"] for stored in world.broker.queues[CONSENSUS_TASKS].ready]


def test_quota_counts_anew_in_a_new_month() -> None:
    submits = [Submit(1.0 + n, FREE, f"k{n}", body=1, items=2, attempts=1) for n in range(6)]
    world = run(MonthEnd(4.5), *submits)
    assert statuses(world) == [202, 202, 403, 403, 202, 202]
    assert world.store.used == {(FREE, "2026-09"): 4, (FREE, "2026-10"): 4}


def test_refund_goes_to_the_month_of_its_charge() -> None:
    """The shim cannot tell whether its publish succeeded; the month ends before the charge is refunded."""
    lost: list[Action] = [FullQueue(0.5, queue, 5.0) for queue in ADMITTED_QUEUES]
    lost.append(Submit(1.0, FREE, "k", body=1, attempts=1))
    world = run(*lost, MonthEnd(2.0), Submit(8.0, FREE, "other", body=1, items=3))
    assert statuses(world) == [503, 202]
    assert world.store.used == {(FREE, "2026-09"): 0, (FREE, "2026-10"): 3}


def test_usage_counts_before_a_quota_is_set_and_after_it_is_removed() -> None:
    submits = [Submit(1.0 + n, PAYING, f"k{n}", body=1, items=2, attempts=1) for n in range(8)]
    world = run(SetQuota(2.5, PAYING, 5), SetQuota(5.5, PAYING, 3), SetQuota(6.5, PAYING, None), *submits)
    assert statuses(world) == [202, 202, 403, 403, 403, 403, 202, 202]
    assert world.store.used == {(PAYING, "2026-09"): 8}


def test_key_is_new_after_its_retention() -> None:
    first, second = (Submit(at, BRIEF, "k", body=1, attempts=1) for at in (1.0, 5.0))
    later = Submit(5.0 + RETENTION, BRIEF, "k", body=2, attempts=1)
    world = run(first, second, later)
    assert statuses(world) == [202, 200, 202]
    assert world.store.used == {(BRIEF, "2026-09"): 2}
    assert len({event["created_at"] for event in events(world)}) == 2


def test_key_is_remembered_while_its_submission_waits_for_longer_than_its_retention() -> None:
    """The events of the first submission are refused for a minute and a half."""
    world = run(
        FullQueue(0.5, CONSENSUS_TASKS, 90.0),
        Submit(1.0, BRIEF, "k", body=1, attempts=1),
        Submit(1.0 + RETENTION + 10.0, BRIEF, "k", body=2, attempts=1),
    )
    assert statuses(world) == [202, 200]
    assert world.store.used == {(BRIEF, "2026-09"): 1}


@pytest.mark.parametrize("name", ["shim0", "worker0"])
@pytest.mark.parametrize("seed", range(10))
def test_stop_in_an_outage_of_the_store_leaves_no_charge(seed: int, name: str) -> None:
    """What the process has published is in doubt. With some seeds it cannot record that before SIGTERM."""
    faults: list[Action] = [Doubt(0.9, "broker", 2.2), Outage(1.25, "store", 3.0, name), Stop(2.5, name, 1.0)]
    submits = [Submit(1.0 + n / 20, PAYING, f"k{n}", body=1, direct=name == "worker0") for n in range(6)]
    world = run(*faults, *submits, seed=seed)
    assert world.store.used == {(PAYING, "2026-09"): 6}


@pytest.mark.parametrize("seed", range(20))
def test_key_whose_charge_was_refunded_can_be_used_with_another_body(seed: int) -> None:
    """With some seeds the worker receives the message before the shim has recorded the confirm."""
    lost: list[Action] = [FullQueue(0.5, queue, 10.0) for queue in ADMITTED_QUEUES]
    lost.append(Submit(1.0, FREE, "k", body=1, attempts=1))
    world = run(*lost, Submit(100.0, FREE, "k", body=2, attempts=1), seed=seed)
    assert statuses(world) == [503, 202]


@pytest.mark.parametrize("items", [0, 2])
def test_submission_is_accepted_although_its_webhook_is_removed_while_its_event_is_refused(items: int) -> None:
    submit = Submit(1.0, STRICT, "k", body=2, items=items, direct=True)
    world = run(FullQueue(0.5, WEBHOOK_DISPATCH, 10.0), submit, SetWebhook(3.0, STRICT, False))
    assert len({event["task_id"] for event in events(world)}) == (items or 1)
    assert not world.broker.queues[INGEST_DEAD].ready
    assert not world.broker.queues[FEEDBACK].ready


def test_submission_that_arrives_after_its_webhook_was_removed_is_rejected() -> None:
    world = run(SetWebhook(0.5, STRICT, False), Submit(1.0, STRICT, "k", body=2, direct=True))
    assert len(world.broker.queues[INGEST_DEAD].ready) == 1
    assert world.store.used == {}


def test_graceful_stops_of_all_processes_delay_nothing_and_leave_nothing() -> None:
    """Not even while connections are lost. The checker looks for claims, charges and lost tasks."""
    stops = [Stop(1.0 + n, name, 0.5) for n, name in enumerate((*WORKERS, *SHIMS))]
    lost = [LostConnection(1.5 + n, name) for n, name in enumerate(WORKERS)]
    submits = [Submit(n / 10, PAYING, f"k{n}", body=1, items=n % 3, direct=n % 2 == 0) for n in range(60)]
    world = run(*stops, *lost, *submits)
    assert {attempt.submit.key for attempt in world.attempts if attempt.status == 202} == {s.key for s in submits}


@pytest.mark.parametrize("direct", [False, True], ids=["http", "direct"])
@pytest.mark.parametrize("items", [0, 2], ids=["task", "batch"])
def test_repeat_after_an_hour_accepts_a_submission_whose_message_was_lost(items: int, direct: bool) -> None:
    """It is charged once. A repeat before that has no effect, and neither has one afterwards."""
    lost = [LostMessages(at=0.5, queue=queue, seconds=2.0) for queue in ADMITTED_QUEUES]
    first = Submit(at=1.0, customer=PAYING, key="k", body=1, items=items)
    repeat = msgspec.structs.replace(first, direct=direct)
    world = run(*lost, first, *[msgspec.structs.replace(repeat, at=at) for at in (1000.0, 3700.0, 9000.0)])
    accepted = [stored.at for stored in world.broker.queues[CONSENSUS_TASKS].ready]
    assert len(accepted) == max(1, items)
    assert all(3700 < at < 3710 for at in accepted)
    used = [count for (customer, _), count in world.store.used.items() if customer == PAYING]
    assert sum(used) == max(1, items)
