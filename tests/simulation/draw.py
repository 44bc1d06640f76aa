"""Draws random schedules."""

import random
from typing import Final

import msgspec

from ingest.admission import REPUBLISH_AFTER
from ingest.domain.topology import (
    CONSENSUS_TASKS,
    EVENTS,
    INGEST_BATCHES,
    INGEST_DEAD,
    INGEST_TASKS,
    SUBMISSIONS,
    WEBHOOK_DISPATCH,
)
from tests.simulation.customers import BRIEF, FREE, PAYING, QUIET, STRICT
from tests.simulation.schedule import (
    SHIMS,
    WORKERS,
    Action,
    Backlog,
    Crash,
    Doubt,
    FullQueue,
    LostConnection,
    LostMessages,
    LostRecord,
    MissingBindings,
    MissingCustomer,
    MonthEnd,
    Outage,
    Pause,
    Redrive,
    Schedule,
    SetQuota,
    SetWebhook,
    Stop,
    Submit,
)

_KEYS: Final = ("k1", "k2", "k3")
_QUEUES: Final = (CONSENSUS_TASKS, WEBHOOK_DISPATCH, INGEST_TASKS, INGEST_BATCHES, INGEST_DEAD)
_SPAN: Final = 8.0
"""Seconds within which most clients begin and faults occur."""
_LATER: Final = REPUBLISH_AFTER + 400.0
"""Seconds after which a repeat publishes a submission again, although clocks are wrong and its client has retried."""
_CUSTOMERS: Final = (FREE, FREE, PAYING, PAYING, STRICT, STRICT, BRIEF)


def draw(seed: int) -> Schedule:
    """Draw a schedule: a few submissions and faults, often with a subject in addition."""
    rng = random.Random(seed)
    actions: list[Action] = [_submit(rng) for _ in range(rng.randint(2, 6))]
    actions += [_fault(rng) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5)))]
    subject = rng.random()
    if subject < 0.1:
        actions += _crowd(rng)
    elif subject < 0.2:
        actions += _month_end(rng)
    elif subject < 0.3:
        actions += _retention(rng)
    elif subject < 0.4:
        actions += _changes(rng)
    elif subject < 0.5:
        actions += _late(rng)
    elif subject < 0.55:
        actions += _stop(rng)
    if rng.random() < 0.5:
        actions += [_quiet(rng, 0.0, 60.0) for _ in range(2)]
    if 0.55 <= subject < 0.58:
        actions = _lost(rng, actions)
    skews = {}
    if rng.random() < 0.15:
        skews = {process: rng.choice((-150.0, -31.0, 31.0, 150.0)) for process in rng.sample(SHIMS + WORKERS, 2)}
    return Schedule(seed, tuple(sorted(actions, key=lambda action: action.at)), skews)


def _submit(rng: random.Random) -> Submit:
    key = rng.choice(_KEYS) if rng.random() < 0.85 else None
    items = rng.choice((0, 0, 0, 1, 2, 3))
    direct = rng.random() < 0.35
    return Submit(
        at=_time(rng),
        customer=rng.choice(_CUSTOMERS),
        key=key,
        body=1 if rng.random() < 0.7 else 2,
        items=items,
        item_key=rng.choice(_KEYS) if items and rng.random() < 0.5 else None,
        direct=direct,
        attempts=rng.choice((1, 2, 10, 10)),
        copies=2 if direct and rng.random() < 0.1 else 1,
    )


def _fault(rng: random.Random) -> Action:
    at = _time(rng)
    server = rng.choice(("store", "broker"))
    process = rng.choice(SHIMS + WORKERS)
    seconds = round(rng.choice((0.05, 0.5, 3.0, 12.0)) * rng.uniform(0.5, 1.5), 3)
    match rng.randrange(12):
        case 0 | 1:
            return Crash(at, process, seconds)
        case 2:
            return Pause(at, process, seconds * 4)
        case 3:
            return Outage(at, server, seconds, process if rng.random() < 0.5 else None)
        case 4 | 5 | 6:
            return Doubt(at, server, seconds, process if rng.random() < 0.5 else None)
        case 7:
            return LostConnection(at, rng.choice(WORKERS))
        case 8:
            return FullQueue(at, rng.choice(_QUEUES), seconds)
        case 9:
            return MissingBindings(at, rng.choice((EVENTS, SUBMISSIONS)), seconds)
        case 10:
            return Stop(at, process, seconds)
        case _:
            if rng.random() < 0.3:
                return Redrive(at, seconds)
            return LostRecord(at, rng.choice(_CUSTOMERS), rng.choice(_KEYS))


def _crowd(rng: random.Random) -> list[Action]:
    """Many submissions of one customer that must wait, or that are charged together; and what must not wait."""
    at = _time(rng)
    direct = rng.random() < 0.5
    quiet: list[Action] = [_quiet(rng, at + 0.5, at + 15.0) for _ in range(3)]
    match rng.randrange(5):
        case 0:
            crowd = [Submit(at, PAYING, f"c{n}", 2, 0, None, direct) for n in range(14)]
            return [FullQueue(at - 0.1, WEBHOOK_DISPATCH, _time(rng, 5.0, 60.0)), *crowd, *quiet]
        case 1:
            crowd = [Submit(at, PAYING, f"c{n}", 2, 2, None, direct) for n in range(8)]
            return [FullQueue(at - 0.1, WEBHOOK_DISPATCH, _time(rng, 5.0, 60.0)), *crowd, *quiet]
        case 2:
            crowd = [Submit(at, FREE, f"c{n}", 1, 0, None, True) for n in range(18)]
            return [FullQueue(at - 0.1, INGEST_DEAD, _time(rng, 5.0, 60.0)), *crowd, *quiet]
        case 3:
            crowd = [Submit(at, FREE, f"c{n}", 1, rng.choice((0, 2)), None, direct) for n in range(6)]
            return [Doubt(at - 0.1, "store", 1.0), *crowd]
        case _:
            # Of some it is in doubt whether they were published, so that another body must wait.
            outages: list[Action] = [Outage(at - 0.1, "broker", 0.5, shim) for shim in SHIMS]
            crowd = [Submit(at, PAYING, f"c{n}", 1, 0, None, False, attempts=1) for n in range(16)]
            again = [Submit(at + 4.0, PAYING, f"c{n}", 2, 0, None, True) for n in range(16)]
            return [*outages, *crowd, *again, *[_quiet(rng, at + 13.0, at + 25.0) for _ in range(3)]]


def _quiet(rng: random.Random, start: float, end: float) -> Submit:
    """A submission that nothing should delay."""
    at = _time(rng, start, end)
    return Submit(at, QUIET, f"q{at}", 1, rng.choice((0, 0, 2)), None, rng.random() < 0.5)


def _month_end(rng: random.Random) -> list[Action]:
    """A month ends, when some have used up their quota."""
    used_up: list[Action] = [
        Submit(_time(rng), FREE, f"m{n}", 1, rng.choice((0, 2, 3)), None, rng.random() < 0.4) for n in range(3)
    ]
    return [MonthEnd(_time(rng)), *used_up]


def _retention(rng: random.Random) -> list[Action]:
    """Keys are used again when they may be forgotten, perhaps during a fault that lasts as long."""
    actions: list[Action] = [
        Submit(
            at=_time(rng) if rng.random() < 0.5 else _time(rng, 60.0, 150.0),
            customer=BRIEF,
            key=rng.choice(_KEYS[:2]),
            body=rng.choice((1, 1, 1, 2)),
            items=rng.choice((0, 0, 0, 2)),
            direct=rng.random() < 0.35,
        )
        for _ in range(4)
    ]
    if rng.random() < 0.3:
        actions.append(FullQueue(_time(rng), rng.choice(_QUEUES), _time(rng, 50.0, 100.0)))
    return actions


def _changes(rng: random.Random) -> list[Action]:
    """An operator changes a customer whose submissions are in progress, and may be delivered again."""
    customer = rng.choice((FREE, FREE, PAYING, STRICT, BRIEF))
    at = _time(rng)
    around: list[Action] = [
        Submit(_time(rng, max(0.0, at - 1.0), at + 1.0), customer, f"r{n}", 2, rng.choice((0, 0, 2)), None, n % 2 == 0)
        for n in range(3)
    ]
    match rng.randrange(4):
        case 0:
            return [SetQuota(at, customer, rng.choice((0, 1, 3, 6, None))), *around]
        case 1:
            limited = SetQuota(at, customer, rng.choice((0, 1, 3, 6)))
            return [limited, SetQuota(_time(rng, at, at + 5.0), customer, rng.choice((2, 6, None))), *around]
        case 2:
            change: Action = SetWebhook(at, customer, False)
        case _:
            change = MissingCustomer(rng.choice((0.0, at)), customer, _time(rng, 0.5, 5.0))
    lost = LostConnection(_time(rng, at, at + 1.0), rng.choice(WORKERS))
    full = FullQueue(max(0.0, at - 1.0), WEBHOOK_DISPATCH, _time(rng, 1.0, 5.0))
    return [change, rng.choice((lost, full)), *around]


def _late(rng: random.Random) -> list[Action]:
    """Messages in doubt wait in a queue, perhaps until their charges are refunded and their keys are used again."""
    at = _time(rng, 1.0, 3.0)
    customer = rng.choice((FREE, PAYING, STRICT))
    faults: list[Action] = [
        Backlog(at - 0.3, queue, _time(rng, 40.0, 160.0)) for queue in (INGEST_TASKS, INGEST_BATCHES)
    ]
    faults += [Doubt(at - 0.2, "broker", 1.0, shim) for shim in SHIMS]
    submits: list[Action] = [
        Submit(
            at=_time(rng, at - 0.2, at + 0.5) if n < 3 else _time(rng, at + 30.0, at + 140.0),
            customer=customer,
            key=rng.choice(_KEYS) if rng.random() < 0.8 else None,
            body=rng.choice((1, 1, 2)),
            items=(items := rng.choice((0, 0, 1, 2))),
            item_key=rng.choice(_KEYS) if items else None,
            attempts=rng.choice((1, 1, 3)),
        )
        for n in range(6)
    ]
    return [*faults, *submits]


def _stop(rng: random.Random) -> list[Action]:
    """A process gets SIGTERM while it cannot record what it has published."""
    at = _time(rng, 1.0, 5.0)
    process = rng.choice(SHIMS + WORKERS)
    submits: list[Action] = [
        Submit(_time(rng, at - 0.5, at + 0.5), PAYING, f"s{n}", 1, rng.choice((0, 0, 2)), None, process in WORKERS)
        for n in range(6)
    ]
    doubt = Doubt(at - 0.5, "broker", 2.5)
    outage = Outage(_time(rng, at - 0.3, at + 0.3), "store", _time(rng, 0.5, 3.5), process)
    return [doubt, outage, Stop(_time(rng, at, at + 2.0), process, 1.0), *submits]


def _lost(rng: random.Random, actions: list[Action]) -> list[Action]:
    """The queues of submissions lose messages, and each client submits again once that publishes them again.

    No record of the store is lost as well: then nothing would know of the submission.
    """
    at = _time(rng, 0.0, 4.0)
    lost: list[Action] = [LostMessages(at, queue, _time(rng, 0.5, 6.0)) for queue in (INGEST_TASKS, INGEST_BATCHES)]
    for action in actions:
        if isinstance(action, Submit):
            first = msgspec.structs.replace(action, key=action.key or f"l{action.at}")
            direct = first.direct or rng.random() < 0.3
            lost += [first, msgspec.structs.replace(first, at=first.at + _LATER, direct=direct, attempts=10)]
        elif not isinstance(action, LostRecord):
            lost.append(action)
    return lost


def _time(rng: random.Random, start: float = 0.0, end: float = _SPAN) -> float:
    return round(rng.uniform(start, end), 3)
