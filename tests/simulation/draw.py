"""Draws random schedules."""

import random
from typing import Final

from ingest.domain.topology import CONSENSUS_TASKS, EVENTS, INGEST_BATCHES, INGEST_TASKS, SUBMISSIONS, WEBHOOK_DISPATCH
from tests.simulation.schedule import (
    CUSTOMERS,
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
    Schedule,
    Submit,
)

_KEYS: Final = ("k1", "k2", "k3")
_SPAN: Final = 8.0
"""Seconds within which clients begin and faults occur."""


def draw(seed: int) -> Schedule:
    """Draw a schedule."""
    rng = random.Random(seed)
    actions: list[Action] = [_submit(rng) for _ in range(rng.randint(2, 6))]
    actions += [_fault(rng) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))]
    skews = {}
    if rng.random() < 0.15:
        skews = {process: rng.choice((-150.0, -31.0, 31.0, 150.0)) for process in rng.sample(SHIMS + WORKERS, 2)}
    return Schedule(seed, tuple(sorted(actions, key=lambda action: action.at)), skews)


def _submit(rng: random.Random) -> Submit:
    key = rng.choice(_KEYS) if rng.random() < 0.85 else None
    items = rng.choice((0, 0, 0, 1, 2, 3))
    return Submit(
        at=round(rng.uniform(0.0, _SPAN), 3),
        customer=rng.choice(CUSTOMERS),
        key=key,
        body=1 if rng.random() < 0.7 else 2,
        items=items,
        item_key=rng.choice(_KEYS) if items and rng.random() < 0.5 else None,
        direct=rng.random() < 0.35,
        attempts=rng.choice((1, 2, 10, 10)),
    )


def _fault(rng: random.Random) -> Action:
    at = round(rng.uniform(0.0, _SPAN), 3)
    server = rng.choice(("store", "broker"))
    process = rng.choice(SHIMS + WORKERS)
    seconds = round(rng.choice((0.05, 0.5, 3.0, 12.0)) * rng.uniform(0.5, 1.5), 3)
    queue = rng.choice((CONSENSUS_TASKS, WEBHOOK_DISPATCH, INGEST_TASKS, INGEST_BATCHES))
    match rng.randrange(9):
        case 0 | 1:
            return Crash(at, process, seconds)
        case 2:
            return Pause(at, process, seconds * 4)
        case 3:
            return Outage(at, server, seconds, process if rng.random() < 0.5 else None)
        case 4 | 5:
            return Doubt(at, server, seconds, process if rng.random() < 0.5 else None)
        case 6:
            return LostConnection(at, rng.choice(WORKERS))
        case 7:
            if rng.random() < 0.5:
                return FullQueue(at, queue, seconds)
            return MissingBindings(at, rng.choice((EVENTS, SUBMISSIONS)), seconds)
        case _:
            return LostRecord(at, rng.choice(CUSTOMERS), rng.choice(_KEYS))
