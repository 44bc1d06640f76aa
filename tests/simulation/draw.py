"""Draws random schedules."""

import random
from typing import Final

from ingest.domain.topology import EVENTS, SUBMISSIONS
from tests.simulation.schedule import (
    SHIMS,
    WORKERS,
    Action,
    Crash,
    Doubt,
    FullQueue,
    LostConnection,
    LostRecord,
    MissingBindings,
    Outage,
    Pause,
    Redrive,
    Schedule,
    Stop,
    Submit,
)
from tests.simulation.subjects import (
    CUSTOMERS_DRAWN,
    KEYS,
    QUEUES,
    draw_bundles,
    draw_changes,
    draw_crowd,
    draw_late,
    draw_lost,
    draw_month_end,
    draw_quiet,
    draw_retention,
    draw_stop,
    random_time,
)

_SUBJECTS: Final = (
    (0.1, draw_crowd),
    (0.2, draw_month_end),
    (0.3, draw_retention),
    (0.4, draw_changes),
    (0.5, draw_late),
    (0.55, draw_stop),
    (0.61, draw_bundles),
)
"""With the upper ends of their shares; up to 0.64 messages are lost, and the rest has no subject."""


def draw(seed: int) -> Schedule:
    """Draw a schedule: a few submissions and faults, often with a subject in addition."""
    rng = random.Random(seed)
    actions: list[Action] = [_submit(rng) for _ in range(rng.randint(2, 6))]
    actions += [_fault(rng) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5)))]
    subject = rng.random()
    for limit, draw_subject in _SUBJECTS:
        if subject < limit:
            actions += draw_subject(rng)
            break
    if rng.random() < 0.5:
        actions += [draw_quiet(rng, 0.0, 60.0) for _ in range(2)]
    if 0.61 <= subject < 0.64:
        actions = draw_lost(rng, actions)
    skews = {}
    if rng.random() < 0.15:
        skews = {process: rng.choice((-150.0, -31.0, 31.0, 150.0)) for process in rng.sample(SHIMS + WORKERS, 2)}
    return Schedule(seed, tuple(sorted(actions, key=lambda action: action.at)), skews)


def _submit(rng: random.Random) -> Submit:
    key = rng.choice(KEYS) if rng.random() < 0.85 else None
    items = rng.choice((0, 0, 0, 1, 2, 3))
    direct = rng.random() < 0.35
    return Submit(
        at=random_time(rng),
        customer=rng.choice(CUSTOMERS_DRAWN),
        key=key,
        body=1 if rng.random() < 0.7 else 2,
        items=items,
        item_key=rng.choice(KEYS) if items and rng.random() < 0.5 else None,
        direct=direct,
        attempts=rng.choice((1, 2, 10, 10)),
        copies=2 if direct and rng.random() < 0.1 else 1,
    )


def _fault(rng: random.Random) -> Action:
    at = random_time(rng)
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
            return FullQueue(at, rng.choice(QUEUES), seconds)
        case 9:
            return MissingBindings(at, rng.choice((EVENTS, SUBMISSIONS)), seconds)
        case 10:
            return Stop(at, process, seconds)
        case _:
            if rng.random() < 0.3:
                return Redrive(at, seconds)
            return LostRecord(at, rng.choice(CUSTOMERS_DRAWN), rng.choice(KEYS))
