"""What must hold after every schedule: the guarantees, in terms of what clients were told and what came out."""

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any, Final

from ingest.domain.ledger import Phase
from tests.simulation.bodies import batch_id, message_id, task_of
from tests.simulation.charges import charges, leaves_claims
from tests.simulation.clients import Attempt
from tests.simulation.customers import BRIEF, CUSTOMERS, RETENTION, STRICT
from tests.simulation.output import Event, Output, acceptances, is_body, read, tasks_of
from tests.simulation.progress import progress
from tests.simulation.schedule import (
    LostRecord,
    MissingCustomer,
    Redrive,
    Schedule,
    SetQuota,
    SetWebhook,
    Submit,
)
from tests.simulation.world import START, World

_AT_ONCE: Final = 1.0
"""Seconds within which two workers may have the same message, and only one of them knows that its customer was changed:
the other has cached the customer."""


def violations(world: World) -> list[str]:
    """Return every broken guarantee as a sentence; an empty list is a good schedule."""
    output = read(world)
    problems = [*progress(world, output), *_answers(world), *_promises(world, output), *_events(world, output)]
    problems += [*_direct(world, output), *_contradictions(world, output)]
    problems += [*_dead_letters(world, output), *_lost_letters(world, output)]
    return problems + charges(world, output) + _claims(world)


def _answers(world: World) -> list[str]:
    """A client is refused only for a reason that exists."""
    problems = []
    for attempt in world.attempts:
        allowed = {0, 200, 202, 409, 503} | _refusals(world.schedule, attempt.submit.customer).keys()
        if attempt.status not in allowed:
            problems.append(f"{attempt.status} {attempt.answer.get('error')} for {_name(attempt.submit)}")
    return problems


def _refusals(schedule: Schedule, customer: str) -> dict[int, str]:
    """Return why submissions of a customer can be refused, as HTTP statuses and reasons of dead letters."""
    changes = [action for action in schedule.actions if getattr(action, "customer", None) == customer]
    refusals = {}
    # A customer that was deleted has a quota of 0.
    if CUSTOMERS[customer].monthly_quota is not None or any(isinstance(c, SetQuota | MissingCustomer) for c in changes):
        refusals[403] = "quota_exhausted"
    if any(isinstance(change, SetWebhook) for change in changes):
        refusals[400] = "invalid"
    if any(isinstance(change, MissingCustomer) for change in changes):
        refusals[401] = "unknown_customer"
    if customer == STRICT:
        refusals[422] = "key_conflict"
    return refusals


def _promises(world: World, output: Output) -> list[str]:
    """2xx means durable; without a mismatch it means this body."""
    return [
        f"{attempt.status} for {_name(attempt.submit)}: {problem}"
        for attempt in world.attempts
        if not attempt.submit.direct and attempt.status in (200, 202)
        for problem in _broken_promises(attempt, output)
    ]


def _broken_promises(attempt: Attempt, output: Output) -> list[str]:
    submit, answer = attempt.submit, attempt.answer
    mismatch = "idempotency-payload-mismatch" in attempt.headers
    ids = answer["task_ids"] if submit.items else [answer["task_id"]]
    problems = []
    for index, id_ in enumerate(ids):
        if not output.events_for(submit, id_):
            problems.append(f"the event of task {index} is missing")
        # An item with a key of its own is a task of its own: it may have been accepted before with another body.
        elif mismatch or (submit.items and index == 0 and submit.item_key is not None):
            continue
        elif not output.has_body(submit, id_, task_of(submit.body, index)):
            problems.append(f"the event of task {index} has another body")
    if not submit.items and (submit.customer, submit.key) not in output.forgotten:
        times = {event.data["created_at"] for event in output.events_for(submit, ids[0])}
        if times and answer["created_at"] not in times:
            problems.append(f"created_at is {answer['created_at']}, in its events {sorted(times)}")
    return problems


def _events(world: World, output: Output) -> list[str]:
    """One acceptance for each id, and only of what was submitted."""
    submitted: dict[str, list[tuple[Submit, dict[str, Any]]]] = defaultdict(list)
    for attempt in world.attempts:
        for id_, task in tasks_of(attempt):
            submitted[id_].append((attempt.submit, task))
    problems = []
    for id_, events in output.tasks.items():
        sources = submitted.get(id_, [])
        keys = {(submit.customer, key) for submit, _ in sources for key in (submit.key, submit.item_key)}
        if keys.isdisjoint(output.forgotten):
            problems += [f"{id_}: {problem}" for problem in _wrong_acceptances(acceptances(events))]
        if sources and not all(any(is_body(event.data, task) for _, task in sources) for event in events):
            problems.append(f"the event of {id_} has a body that was not submitted")
    return problems


def _wrong_acceptances(groups: list[list[Event]]) -> list[str]:
    """A task is accepted again only after its retention, and all events with one id are equal."""
    problems = ["events with one id differ"] if any(map(_differ, groups)) else []
    if len(groups) > 1 and groups[0][0].data["cust_id"] != BRIEF:
        problems.append("was accepted twice")
    if any(after[0].at - before[0].at < RETENTION for before, after in pairwise(groups)):
        problems.append("was accepted again before its retention ended")
    return problems


def _direct(world: World, output: Output) -> list[str]:
    """Every confirmed direct submission has an outcome that its producer can see."""
    problems = []
    named = {(event.data["cust_id"], event.data["message_id"]): event.at for event in output.feedback}
    for attempt in world.attempts:
        submit = attempt.submit
        if not submit.direct or attempt.status != 202:
            continue
        told_at = named.get(_message(attempt), -RETENTION)
        if told_at >= (START + submit.at - RETENTION if submit.customer == BRIEF else 0.0):
            continue
        has_item_key = submit.items and submit.item_key is not None
        if not all(
            output.has_body(submit, id_, task) or (index == 0 and has_item_key and id_ in output.tasks)
            for index, (id_, task) in enumerate(tasks_of(attempt))
        ):
            problems.append(f"{_name(submit)} was confirmed, and nothing tells its outcome")
    return problems


def _contradictions(world: World, output: Output) -> list[str]:
    """A message that was accepted is not rejected afterwards, although it may be delivered again."""
    sent: dict[tuple[str, str], list[Submit]] = defaultdict(list)
    for attempt in world.attempts:
        sent[_message(attempt)].append(attempt.submit)
    problems = []
    for event in output.feedback:
        cust_id = event.data["cust_id"]
        submits = sent[cust_id, event.data["message_id"]]
        if "reason" not in event.data or not _is_one_message(world, submits):
            continue
        submit = submits[0]
        own = tasks_of(Attempt(submit, 0.0, 0))[1 if submit.item_key else 0 :]
        accepted = [task.at for id_, _ in own for task in output.tasks.get(id_, [])]
        if any(at < event.at - _AT_ONCE and not _was_created(world, submit, at) for at in accepted):
            problems.append(f"{_name(submit)} was accepted, then rejected: {event.data['reason']}")
    return problems


def _was_created(world: World, submit: Submit, accepted_at: float) -> bool:
    """Return whether the customer did not exist until its submission was accepted.

    Its rejection may have been decided before that, and published late.
    """
    return any(
        isinstance(action, MissingCustomer)
        and action.customer == submit.customer
        and START + action.at + action.seconds <= accepted_at
        for action in world.schedule.actions
    )


def _is_one_message(world: World, submits: list[Submit]) -> bool:
    """Return whether a message was sent once, and no other submission has one of its keys."""
    if len(submits) != 1 or submits[0].copies != 1:
        return False
    return not any(
        isinstance(action, Redrive)
        or (isinstance(action, LostRecord) and action.customer == submits[0].customer)
        or (isinstance(action, Submit) and action is not submits[0] and action.shares_a_key(submits[0]))
        for action in world.schedule.actions
    )


def _dead_letters(world: World, output: Output) -> list[str]:
    """Only what cannot be accepted is dead-lettered."""
    problems = []
    for letter in output.dead:
        customer = _customer(letter)
        if letter["reason"] not in _refusals(world.schedule, customer).values():
            problems.append(f"dead letter {letter['submission']['message_id']} of {customer}: {letter['reason']}")
    return problems


def _lost_letters(world: World, output: Output) -> list[str]:
    """A submission whose rejection is the last that its producer was told is in `ingest.dead`."""
    told: dict[tuple[str, str], Event] = {}
    for event in output.feedback:
        told[event.data["cust_id"], event.data["message_id"]] = event
    kept = {(_customer(letter), letter["submission"]["message_id"]) for letter in output.dead}
    accepted_at: dict[tuple[str, str], float] = defaultdict(float)
    for attempt in world.attempts:
        if attempt.submit.direct:
            times = [task.at for id_, _ in tasks_of(attempt) for task in output.tasks.get(id_, [])]
            name = attempt.submit.key or message_id(attempt.submit)
            if attempt.submit.items and _is_accepted(world, batch_id(attempt.submit.customer, name)):
                times.append(math.inf)  # perhaps all its tasks were accepted before
            accepted_at[_message(attempt)] = max([accepted_at[_message(attempt)], *times])
    problems = []
    for key, event in told.items():
        # What a shim had admitted, before its charge was refunded, has its id as its message_id.
        is_accepted = accepted_at[key] >= event.at or _is_accepted(world, key[1])
        if "reason" in event.data and key not in kept and not is_accepted:
            problems.append(f"{key} was rejected ({event.data['reason']}), and is neither dead-lettered nor accepted")
    return problems


def _is_accepted(world: World, id_: str) -> bool:
    entry = world.store.stored(id_)
    return entry is not None and entry.phase is Phase.ACCEPTED


def _claims(world: World) -> list[str]:
    """A refused submission leaves no claim, except if a process has crashed or a call takes effect late."""
    if leaves_claims(world):
        return []
    entries = [entry for _, entry in world.store.ledger.values()]
    return [f"{entry.id} is still claimed" for entry in entries if entry.lease and not entry.is_durable]


def _customer(letter: dict[str, Any]) -> str:
    return str(letter["submission"]["routing_key"]).rpartition(".")[2]


def _message(attempt: Attempt) -> tuple[str, str]:
    """Customer and message_id of a direct submission."""
    return attempt.submit.customer, attempt.submit.key or message_id(attempt.submit)


def _differ(copies: list[Event]) -> bool:
    """Return whether the copies of an event differ in more than their place in a batch."""
    ignored = ("batch_id", "batch_index")
    tasks = [{name: value for name, value in copy.data.items() if name not in ignored} for copy in copies]
    return any(task != tasks[0] for task in tasks)


def _name(submit: Submit) -> str:
    kind = f"batch of {submit.items}" if submit.items else "task"
    return f"{kind} {submit.customer}/{submit.key}/{submit.item_key} body {submit.body} at {submit.at}"
