"""Progress: everything ends, and nothing is delayed by a fault that concerns others."""

from typing import Final

from ingest.domain.topology import (
    ADMITTED_QUEUES,
    CONSENSUS_TASKS,
    INGEST_BATCHES,
    INGEST_DEAD,
    INGEST_TASKS,
    WEBHOOK_DISPATCH,
)
from tests.simulation.bodies import message_id
from tests.simulation.customers import FREE, STRICT, WITH_QUEUES
from tests.simulation.output import Event, Output, tasks_of
from tests.simulation.queues import OWN_BATCHES, OWN_TASKS
from tests.simulation.schedule import (
    SHIMS,
    Action,
    Backlog,
    Expired,
    FullQueue,
    LostConnection,
    LostMessages,
    LostRecord,
    MissingCustomer,
    MonthEnd,
    Redrive,
    SetQuota,
    SetWebhook,
    Stop,
    Submit,
)
from tests.simulation.world import START, World

BOUND: Final = 4.0
"""Virtual seconds within which an undisturbed submission is answered and accepted."""
_BEFORE: Final = 15.0
"""Seconds for which a submission is in flight at most, and a fault can still disturb it."""
_RECOVERY: Final = 12.0
"""Seconds for which a fault can delay submissions that begin after its end: the pause of a circuit breaker, and calls
that take effect late."""


def progress(world: World, output: Output) -> list[str]:
    """Return what has not ended, has ended too late, or has failed, as sentences."""
    problems = [f"not finished in time: {world.unfinished}"] if world.unfinished else []
    for process in world.processes.values():
        problems += [f"{process.name} ended: {failure!r}" for failure in process.failures]
    problems += [f"asyncio reports {e.get('message')}: {e.get('exception')!r}" for e in world.loop.errors]
    submits = [action for action in world.schedule.actions if isinstance(action, Submit)]
    for submit in submits:
        if not any(_concerns(other, submit) for other in world.schedule.actions if other is not submit):
            problems += _delays(world, output, submit)
    return problems


def _delays(world: World, output: Output, submit: Submit) -> list[str]:
    """Return how an undisturbed submission was delayed."""
    name = f"the submission of {submit.customer} at {submit.at}, which no fault concerns,"
    end = START + submit.at + BOUND
    attempts = [attempt for attempt in world.attempts if attempt.submit is submit]
    final = next((attempt for attempt in attempts if attempt.status not in (0, 409, 503)), None)
    if final is None or final.at > end:
        return [f"{name} was answered {[(round(a.at, 3), a.status) for a in attempts]}"]
    if final.status not in (200, 202):
        return []
    told = [event.at for event in output.feedback if submit.direct and _is_about(event, submit)]
    for id_, _ in tasks_of(final):
        arrived = [event.at for event in output.events_for(submit, id_)] + told
        if min(arrived, default=end + 1.0) > end:
            return [f"{name} was accepted at {sorted(arrived)}"]
    return []


def _is_about(event: Event, submit: Submit) -> bool:
    return (event.data["cust_id"], event.data["message_id"]) == (submit.customer, submit.key or message_id(submit))


def _concerns(action: Action, submit: Submit) -> bool:
    """Return whether an action can delay a submission, or change its outcome."""
    match action:
        case Submit():
            return action.shares_a_key(submit)
        case LostRecord() | SetQuota() | SetWebhook() | MissingCustomer():
            return action.customer == submit.customer
        case MonthEnd() | Redrive():
            return False
        case Stop() if action.process not in SHIMS:
            return False
        case FullQueue() | Backlog() | LostMessages() | Expired() if not _needs(submit, action.queue):
            return False
        case LostConnection() | Expired():
            end = action.at
        case _:
            end = action.at + action.seconds
    return action.at - _BEFORE <= submit.at <= end + _RECOVERY


def _needs(submit: Submit, queue: str) -> bool:
    """Return whether a submission, or what it may lead to, is published to a queue."""
    match queue:
        case topic if topic in (INGEST_TASKS, OWN_TASKS):
            return submit.direct and not submit.items and (submit.customer == WITH_QUEUES) is (topic == OWN_TASKS)
        case topic if topic in (INGEST_BATCHES, OWN_BATCHES):
            return submit.direct and bool(submit.items) and (submit.customer == WITH_QUEUES) is (topic == OWN_BATCHES)
        case topic if topic in ADMITTED_QUEUES:
            return not submit.direct
        case topic if topic == WEBHOOK_DISPATCH:
            return submit.body == 2
        case topic if topic == INGEST_DEAD:
            return submit.direct and submit.customer in (FREE, STRICT)
        case _:
            return queue == CONSENSUS_TASKS
