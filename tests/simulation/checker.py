"""What must hold after every schedule: the guarantees, in terms of what clients were told and what came out."""

import json
from collections import defaultdict
from typing import Any

import msgspec

from ingest.domain.identity import item_id
from ingest.domain.topology import CONSENSUS_TASKS, INGEST_DEAD, WEBHOOK_DISPATCH
from tests.simulation.bodies import batch_id, message_id, task_id, task_of
from tests.simulation.clients import Attempt
from tests.simulation.queues import FEEDBACK
from tests.simulation.schedule import Crash, Doubt, LostRecord, Outage, Pause, Submit
from tests.simulation.world import QUOTAS, World


class _Output(msgspec.Struct):
    """Everything that came out of the service.

    `tasks` has the data of the acceptance events by task_id, one for each copy. `feedback` has the events
    `submission.duplicate` and `submission.rejected`. `forgotten` has (customer, key) of the entries that the store has
    lost: such a key may be used again, with another body.
    """

    tasks: dict[str, list[dict[str, Any]]]
    batches: set[str]
    feedback: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    forgotten: set[tuple[str, str | None]]

    def has_body(self, submit: Submit, task_id: str, task: dict[str, Any]) -> bool:
        """Return whether the event of a task has this body, as far as that can be expected."""
        copies = self.tasks.get(task_id, [])
        if not copies:
            return False
        keys = {(submit.customer, submit.key), (submit.customer, submit.item_key)}
        return not keys.isdisjoint(self.forgotten) or _is_body(copies[0], task)


def violations(world: World) -> list[str]:
    """Return every broken guarantee as a sentence; an empty list is a good schedule."""
    output = _read(world)
    problems = [*_progress(world), *_promises(world, output), *_events(world, output)]
    problems += [*_direct(world, output), *_dead_letters(output), *_charges(world, output)]
    return problems + _claims(world)


def _read(world: World) -> _Output:
    queues = world.broker.queues
    forgotten: set[tuple[str, str | None]] = {
        (a.customer, a.key) for a in world.schedule.actions if isinstance(a, LostRecord)
    }
    output = _Output(defaultdict(list), set(), [], [], forgotten)
    for name in (CONSENSUS_TASKS, WEBHOOK_DISPATCH):
        for stored in queues[name].ready:
            event = json.loads(stored.message.body)
            if event["type"].endswith("batch.accepted"):
                output.batches.add(event["data"]["batch_id"])
            elif name == CONSENSUS_TASKS:
                output.tasks[event["data"]["task_id"]].append(event["data"])
    output.feedback = [json.loads(stored.message.body) for stored in queues[FEEDBACK].ready]
    for stored in queues[INGEST_DEAD].ready:
        if "x-death" in stored.headers:
            output.dead.append({"reason": "delivery_limit", "submission": {"message_id": stored.message.message_id}})
        else:
            output.dead.append(json.loads(stored.message.body))
    return output


def _progress(world: World) -> list[str]:
    """Everything ends, and no process fails."""
    problems = [f"not finished in time: {world.unfinished}"] if world.unfinished else []
    for process in world.processes.values():
        problems += [f"{process.name} ended: {failure!r}" for failure in process.failures]
    return problems + [f"asyncio reports {e.get('message')}: {e.get('exception')!r}" for e in world.loop.errors]


def _promises(world: World, output: _Output) -> list[str]:
    """2xx means durable; without a mismatch it means this body."""
    return [
        f"{attempt.status} for {_name(attempt.submit)}: {problem}"
        for attempt in world.attempts
        if not attempt.submit.direct and attempt.status in (200, 202)
        for problem in _broken_promises(attempt, output)
    ]


def _broken_promises(attempt: Attempt, output: _Output) -> list[str]:
    submit, answer = attempt.submit, attempt.answer
    mismatch = "idempotency-payload-mismatch" in attempt.headers
    ids = answer["task_ids"] if submit.items else [answer["task_id"]]
    problems = []
    for index, id_ in enumerate(ids):
        if not output.tasks.get(id_):
            problems.append(f"the event of task {index} is missing")
        # An item with a key of its own is a task of its own: it may have been accepted before with another body.
        elif mismatch or (submit.items and index == 0 and submit.item_key is not None):
            continue
        elif not output.has_body(submit, id_, task_of(submit.body, index)):
            problems.append(f"the event of task {index} has another body")
    return problems


def _events(world: World, output: _Output) -> list[str]:
    """One acceptance for each id, and only of what was submitted."""
    submitted: dict[str, list[tuple[Submit, dict[str, Any]]]] = defaultdict(list)
    for attempt in world.attempts:
        for id_, task in _tasks(attempt):
            submitted[id_].append((attempt.submit, task))
    problems = []
    for id_, copies in output.tasks.items():
        sources = submitted.get(id_, [])
        keys = {(submit.customer, key) for submit, _ in sources for key in (submit.key, submit.item_key)}
        if keys.isdisjoint(output.forgotten) and _differ(copies):
            problems.append(f"the events of {id_} differ")
        if sources and not any(_is_body(copies[0], task) for _, task in sources):
            problems.append(f"the event of {id_} has a body that was not submitted")
    return problems


def _direct(world: World, output: _Output) -> list[str]:
    """Every confirmed direct submission has an outcome that its producer can see."""
    problems = []
    named = {event["data"].get("message_id") for event in output.feedback}
    for attempt in world.attempts:
        submit = attempt.submit
        if not submit.direct or attempt.status != 202 or (submit.key or message_id(submit)) in named:
            continue
        has_item_key = submit.items and submit.item_key is not None
        if not all(
            output.has_body(submit, id_, task) or (index == 0 and has_item_key and id_ in output.tasks)
            for index, (id_, task) in enumerate(_tasks(attempt))
        ):
            problems.append(f"{_name(submit)} was confirmed, and nothing tells its outcome")
    return problems


def _dead_letters(output: _Output) -> list[str]:
    """Only what cannot be accepted is dead-lettered."""
    return [
        f"dead letter {letter['submission']['message_id']}: {letter['reason']}"
        for letter in output.dead
        if letter["reason"] not in ("quota_exhausted", "key_conflict")
    ]


def _charges(world: World, output: _Output) -> list[str]:
    """Never under-charged; over-charged only for what a crashed process had in flight."""
    accepted: dict[str, int] = defaultdict(int)
    for copies in output.tasks.values():
        accepted[copies[0]["cust_id"]] += 1
    crashed = any(process.crashes for process in world.processes.values())
    # A pause that outlasts a lease is a crash to the others. A lost record has forgotten what was charged.
    excused = crashed or any(isinstance(action, LostRecord | Pause) for action in world.schedule.actions)
    problems = []
    for cust_id in QUOTAS:
        used = world.store.used_by(cust_id)
        if used < accepted[cust_id]:
            problems.append(f"{cust_id} is charged for {used} tasks, {accepted[cust_id]} were accepted")
        if used > accepted[cust_id] and not excused:
            problems.append(f"{cust_id} is charged for {used} tasks, only {accepted[cust_id]} were accepted")
    return problems


def _claims(world: World) -> list[str]:
    """A refused submission leaves no claim. Crashes, and calls to the store without an answer, may leave one."""
    for action in world.schedule.actions:
        if isinstance(action, Crash | Pause) or (isinstance(action, Outage | Doubt) and action.server == "store"):
            return []
    entries = [entry for _, entry in world.store.ledger.values()]
    return [f"{entry.id} is still claimed" for entry in entries if entry.lease and not entry.is_durable]


def _tasks(attempt: Attempt) -> list[tuple[str, dict[str, Any]]]:
    """(task id, task) of everything that an attempt submits, as far as the ids are known."""
    submit = attempt.submit
    key = submit.key or (message_id(submit) if submit.direct else None)
    if not submit.items:
        id_ = task_id(submit.customer, key) if key else attempt.answer.get("task_id")
        return [(id_, task_of(submit.body))] if id_ else []
    parent = batch_id(submit.customer, key) if key else attempt.answer.get("batch_id")
    tasks = []
    for index in range(submit.items):
        if index == 0 and submit.item_key:
            tasks.append((task_id(submit.customer, submit.item_key), task_of(submit.body)))
        elif parent:
            tasks.append((item_id(parent, index), task_of(submit.body, index)))
    return tasks


def _is_body(data: dict[str, Any], task: dict[str, Any]) -> bool:
    return bool(data["data_url"] == task["data_url"])


def _differ(copies: list[dict[str, Any]]) -> bool:
    """Return whether the copies of an event differ in more than their place in a batch."""
    placed = any("batch_id" in copy for copy in copies)
    ignored = ("batch_id", "batch_index", "created_at") if placed else ()
    tasks = [{name: value for name, value in copy.items() if name not in ignored} for copy in copies]
    return any(task != tasks[0] for task in tasks)


def _name(submit: Submit) -> str:
    kind = f"batch of {submit.items}" if submit.items else "task"
    return f"{kind} {submit.customer}/{submit.key}/{submit.item_key} body {submit.body} at {submit.at}"
