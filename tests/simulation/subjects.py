"""The subjects of random schedules: submissions and faults that meet."""

import random
from typing import Final

import msgspec

from ingest.admission import REPUBLISH_AFTER
from ingest.domain.topology import ADMITTED_QUEUES, CONSENSUS_TASKS, INGEST_DEAD, WEBHOOK_DISPATCH
from tests.simulation.customers import BRIEF, FREE, PAYING, QUIET, STRICT
from tests.simulation.queues import WORKER_QUEUES
from tests.simulation.schedule import (
    SHIMS,
    WORKERS,
    Action,
    Backlog,
    Crash,
    Doubt,
    Expired,
    FullQueue,
    LostConnection,
    LostMessages,
    LostRecord,
    MissingCustomer,
    MonthEnd,
    Outage,
    Redrive,
    SetQuota,
    SetWebhook,
    Stop,
    Submit,
)

KEYS: Final = ("k1", "k2", "k3")
QUEUES: Final = (CONSENSUS_TASKS, WEBHOOK_DISPATCH, *WORKER_QUEUES, INGEST_DEAD)
_SPAN: Final = 8.0
"""Seconds within which most clients begin and faults occur."""
_LATER: Final = REPUBLISH_AFTER + 400.0
"""Seconds after which a repeat publishes a submission again, although clocks are wrong and its client has retried."""
CUSTOMERS_DRAWN: Final = (FREE, FREE, PAYING, PAYING, STRICT, STRICT, BRIEF)


def draw_crowd(rng: random.Random) -> list[Action]:
    """Many submissions of one customer that must wait, or that are charged together; and what must not wait."""
    at = random_time(rng)
    direct = rng.random() < 0.5
    quiet: list[Action] = [draw_quiet(rng, at + 0.5, at + 15.0) for _ in range(3)]
    match rng.randrange(5):
        case 0:
            crowd = [Submit(at, PAYING, f"c{n}", 2, 0, None, direct) for n in range(14)]
            return [FullQueue(at - 0.1, WEBHOOK_DISPATCH, random_time(rng, 5.0, 60.0)), *crowd, *quiet]
        case 1:
            crowd = [Submit(at, PAYING, f"c{n}", 2, 2, None, direct) for n in range(8)]
            return [FullQueue(at - 0.1, WEBHOOK_DISPATCH, random_time(rng, 5.0, 60.0)), *crowd, *quiet]
        case 2:
            crowd = [Submit(at, FREE, f"c{n}", 1, 0, None, True) for n in range(18)]
            return [FullQueue(at - 0.1, INGEST_DEAD, random_time(rng, 5.0, 60.0)), *crowd, *quiet]
        case 3:
            crowd = [Submit(at, FREE, f"c{n}", 1, rng.choice((0, 2)), None, direct) for n in range(6)]
            return [Doubt(at - 0.1, "store", 1.0), *crowd]
        case _:
            # Of some it is in doubt whether they were published, so that another body must wait.
            outages: list[Action] = [Outage(at - 0.1, "broker", 0.5, shim) for shim in SHIMS]
            crowd = [Submit(at, PAYING, f"c{n}", 1, 0, None, False, attempts=1) for n in range(16)]
            again = [Submit(at + 4.0, PAYING, f"c{n}", 2, 0, None, True) for n in range(16)]
            return [*outages, *crowd, *again, *[draw_quiet(rng, at + 13.0, at + 25.0) for _ in range(3)]]


def draw_quiet(rng: random.Random, start: float, end: float) -> Submit:
    """A submission that nothing should delay."""
    at = random_time(rng, start, end)
    return Submit(at, QUIET, f"q{at}", 1, rng.choice((0, 0, 2)), None, rng.random() < 0.5)


def draw_month_end(rng: random.Random) -> list[Action]:
    """A month ends, when some have used up their quota, or between two charges of one submission."""
    used_up: list[Action] = [
        Submit(random_time(rng), FREE, f"m{n}", 1, rng.choice((0, 2, 3)), None, rng.random() < 0.4) for n in range(3)
    ]
    if rng.random() < 0.7:
        return [MonthEnd(random_time(rng)), *used_up]
    # The first charge is refunded, and so is the second one, because the queues stay full.
    at = random_time(rng)
    faults: list[Action] = [FullQueue(at - 0.5, queue, 115.0) for queue in ADMITTED_QUEUES]
    charged_twice: list[Action] = [
        Submit(
            at=random_time(rng, at, at + 1.0),
            customer=PAYING,
            key=f"d{n}",
            body=1,
            items=rng.choice((0, 0, 2)),
            attempts=1,
            again=random_time(rng, 85.0, 95.0),
        )
        for n in range(3)
    ]
    return [*faults, MonthEnd(random_time(rng, at + 5.0, at + 80.0)), *charged_twice]


def draw_retention(rng: random.Random) -> list[Action]:
    """Keys are used again when they may be forgotten, perhaps during a fault that lasts as long."""
    actions: list[Action] = [
        Submit(
            at=random_time(rng) if rng.random() < 0.5 else random_time(rng, 60.0, 150.0),
            customer=BRIEF,
            key=rng.choice(KEYS[:2]),
            body=rng.choice((1, 1, 1, 2)),
            items=rng.choice((0, 0, 0, 2)),
            direct=rng.random() < 0.35,
        )
        for _ in range(4)
    ]
    if rng.random() < 0.3:
        actions.append(FullQueue(random_time(rng), rng.choice(QUEUES), random_time(rng, 50.0, 100.0)))
    return actions


def draw_changes(rng: random.Random) -> list[Action]:
    """An operator changes a customer whose submissions are in progress, and may be delivered again."""
    customer = rng.choice((FREE, FREE, PAYING, STRICT, BRIEF))
    at = random_time(rng)
    around: list[Action] = [
        Submit(
            random_time(rng, max(0.0, at - 1.0), at + 1.0),
            customer,
            f"r{n}",
            2,
            rng.choice((0, 0, 2)),
            None,
            n % 2 == 0,
        )
        for n in range(3)
    ]
    match rng.randrange(4):
        case 0:
            return [SetQuota(at, customer, rng.choice((0, 1, 3, 6, None))), *around]
        case 1:
            limited = SetQuota(at, customer, rng.choice((0, 1, 3, 6)))
            return [limited, SetQuota(random_time(rng, at, at + 5.0), customer, rng.choice((2, 6, None))), *around]
        case 2:
            change: Action = SetWebhook(at, customer, False)
        case _:
            change = MissingCustomer(rng.choice((0.0, at)), customer, random_time(rng, 0.5, 5.0))
    lost = LostConnection(random_time(rng, at, at + 1.0), rng.choice(WORKERS))
    full = FullQueue(max(0.0, at - 1.0), WEBHOOK_DISPATCH, random_time(rng, 1.0, 5.0))
    return [change, rng.choice((lost, full)), *around]


def draw_late(rng: random.Random) -> list[Action]:
    """Messages in doubt wait in a queue, perhaps until their charges are refunded and their keys are used again."""
    at = random_time(rng, 1.0, 3.0)
    customer = rng.choice((FREE, PAYING, STRICT))
    faults: list[Action] = [Backlog(at - 0.3, queue, random_time(rng, 40.0, 160.0)) for queue in WORKER_QUEUES]
    faults += [Doubt(at - 0.2, "broker", 1.0, shim) for shim in SHIMS]
    submits: list[Action] = [
        Submit(
            at=random_time(rng, at - 0.2, at + 0.5) if n < 3 else random_time(rng, at + 30.0, at + 140.0),
            customer=customer,
            key=rng.choice(KEYS) if rng.random() < 0.8 else None,
            body=rng.choice((1, 1, 2)),
            items=(items := rng.choice((0, 0, 1, 2))),
            item_key=rng.choice(KEYS) if items else None,
            attempts=rng.choice((1, 1, 3)),
        )
        for n in range(6)
    ]
    return [*faults, *submits]


def draw_stop(rng: random.Random) -> list[Action]:
    """A process gets SIGTERM while it cannot record what it has published, or workers while submissions must wait."""
    at = random_time(rng, 1.0, 5.0)
    process = rng.choice(SHIMS + WORKERS)
    if rng.random() < 0.4:
        return _draw_stop_while_contended(rng, at)
    submits: list[Action] = [
        Submit(
            random_time(rng, at - 0.5, at + 0.5), PAYING, f"s{n}", 1, rng.choice((0, 0, 2)), None, process in WORKERS
        )
        for n in range(6)
    ]
    doubt = Doubt(at - 0.5, "broker", 2.5)
    outage = Outage(random_time(rng, at - 0.3, at + 0.3), "store", random_time(rng, 0.5, 3.5), process)
    return [doubt, outage, Stop(random_time(rng, at, at + 2.0), process, 1.0), *submits]


def _draw_stop_while_contended(rng: random.Random, at: float) -> list[Action]:
    """Shims that wait for confirms hold the keys of direct submissions."""
    doubts: list[Action] = [Doubt(at - 0.5, "broker", 1.0, shim) for shim in SHIMS]
    stops: list[Action] = [Stop(random_time(rng, at + 0.2, at + 0.8), worker, 1.0) for worker in WORKERS]
    first: list[Action] = [Submit(at - 0.1, PAYING, f"s{n}", 1, attempts=1) for n in range(6)]
    direct: list[Action] = [
        Submit(random_time(rng, at + 0.1, at + 0.5), PAYING, f"s{n}", 1, direct=True) for n in range(6)
    ]
    return [*doubts, *stops, *first, *direct]


def draw_bundles(rng: random.Random) -> list[Action]:
    """Tasks of several customers arrive together, and what happens to their messages happens to some or to all."""
    at = random_time(rng, 1.0, 3.0)
    crowd: list[Action] = [
        Submit(at, rng.choice((FREE, PAYING, STRICT, QUIET)), f"b{n}", rng.choice((1, 1, 1, 2))) for n in range(12)
    ]
    held: list[Action] = [Backlog(at - 0.3, queue, 3.0) for queue in ADMITTED_QUEUES]
    match rng.randrange(4):
        case 0:
            # Each worker gets them, and returns them, until they are taken apart.
            lost = [LostConnection(at + 0.3 * n, worker) for n in range(1, 6) for worker in WORKERS]
            return [FullQueue(at - 0.5, CONSENSUS_TASKS, 2.5), *crowd, *lost]
        case 1:
            crashes = [Crash(random_time(rng, at, at + 4.0), worker, 0.3) for worker in WORKERS for _ in range(3)]
            return [*held, *crowd, *crashes]
        case 2:
            # Some of them wait apart.
            return [FullQueue(at - 0.5, WEBHOOK_DISPATCH, random_time(rng, 1.0, 30.0)), *crowd]
        case _:
            expired = [Expired(at + 2.0, queue) for queue in ADMITTED_QUEUES]
            redrives = [Redrive(at + 3.0, random_time(rng, 0.1, 3.0), rng.choice((None, PAYING))) for _ in range(2)]
            return [*held, *crowd, *expired, *redrives]


def draw_lost(rng: random.Random, actions: list[Action]) -> list[Action]:
    """The queues of submissions lose messages, and each client submits again once that publishes them again.

    No record of the store is lost as well: then nothing would know of the submission.
    """
    at = random_time(rng, 0.0, 4.0)
    lost: list[Action] = [LostMessages(at, queue, random_time(rng, 0.5, 6.0)) for queue in WORKER_QUEUES]
    for action in actions:
        if isinstance(action, Submit):
            lost.append(msgspec.structs.replace(action, key=action.key or f"l{action.at}", again=_LATER))
        elif not isinstance(action, LostRecord):
            lost.append(action)
    return lost


def random_time(rng: random.Random, start: float = 0.0, end: float = _SPAN) -> float:
    return round(rng.uniform(start, end), 3)
