"""Everything that came out of the service during a schedule."""

import json
from collections import defaultdict
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from ingest.domain import bundles
from ingest.domain.identity import item_id
from ingest.domain.topology import CONSENSUS_TASKS, INGEST_DEAD, WEBHOOK_DISPATCH
from tests.simulation.bodies import batch_id, message_id, task_id, task_of
from tests.simulation.clients import Attempt
from tests.simulation.customers import BRIEF, RETENTION
from tests.simulation.queues import FEEDBACK
from tests.simulation.schedule import LostRecord, Submit
from tests.simulation.world import START, World


class Event(msgspec.Struct, frozen=True):
    """The id and the data of an event, and when it arrived, in virtual seconds."""

    at: float
    id: str
    data: dict[str, Any]

    @property
    def created_at(self) -> float:
        """When its submission was admitted, in Unix seconds."""
        return _seconds(self.data["created_at"])


class Output(msgspec.Struct):
    """What came out.

    `tasks` has the acceptance events by task_id, one for each copy. `feedback` has the events `submission.duplicate`
    and `submission.rejected`. `forgotten` has (customer, key) of the entries that the store has lost: such a key may be
    used again, with another body.
    """

    tasks: dict[str, list[Event]] = msgspec.field(default_factory=lambda: defaultdict(list))
    batches: set[str] = msgspec.field(default_factory=set)
    feedback: list[Event] = msgspec.field(default_factory=list)
    dead: list[dict[str, Any]] = msgspec.field(default_factory=list)
    forgotten: set[tuple[str, str | None]] = msgspec.field(default_factory=set)

    def events_for(self, submit: Submit, task_id: str) -> list[Event]:
        """Return the acceptance events of a task that can belong to a submission: not those before its retention."""
        events = self.tasks.get(task_id, [])
        if submit.customer != BRIEF:
            return events
        return [event for event in events if event.at >= START + submit.at - RETENTION]

    def has_body(self, submit: Submit, task_id: str, task: dict[str, Any]) -> bool:
        """Return whether the event of a task has this body, as far as that can be expected."""
        events = self.events_for(submit, task_id)
        if not events:
            return False
        keys = {(submit.customer, submit.key), (submit.customer, submit.item_key)}
        if submit.customer == BRIEF or not keys.isdisjoint(self.forgotten):
            return any(is_body(event.data, task) for event in events)
        return is_body(events[0].data, task)


def read(world: World) -> Output:
    """Read the queues."""
    queues = world.broker.queues
    output = Output()
    output.forgotten = {(a.customer, a.key) for a in world.schedule.actions if isinstance(a, LostRecord)}
    for name in (CONSENSUS_TASKS, WEBHOOK_DISPATCH):
        for stored in queues[name].ready:
            event = json.loads(stored.message.body)
            if event["type"].endswith("batch.accepted"):
                output.batches.add(event["data"]["batch_id"])
            elif name == CONSENSUS_TASKS:
                output.tasks[event["data"]["task_id"]].append(Event(stored.at, event["id"], event["data"]))
    for stored in queues[FEEDBACK].ready:
        event = json.loads(stored.message.body)
        output.feedback.append(Event(stored.at, event["id"], event["data"]))
    for stored in queues[INGEST_DEAD].ready:
        if "x-death" in stored.headers:
            delivery = stored.delivery(INGEST_DEAD, None)
            for one in bundles.unpack(delivery) if delivery.type == bundles.TYPE else [delivery]:
                submission = {"message_id": one.message_id, "routing_key": one.routing_key}
                output.dead.append({"reason": stored.headers["x-death"][0]["reason"], "submission": submission})
        else:
            output.dead.append(json.loads(stored.message.body))
    return output


def acceptances(events: list[Event]) -> list[list[Event]]:
    """Return the events of one task in groups: copies of one acceptance have the same id, and no others."""
    groups: dict[str, list[Event]] = {}
    for event in events:
        groups.setdefault(event.id, []).append(event)
    return list(groups.values())


def tasks_of(attempt: Attempt) -> list[tuple[str, dict[str, Any]]]:
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


def is_body(data: dict[str, Any], task: dict[str, Any]) -> bool:
    """Return whether an event has the body of this task."""
    return bool(data["data_url"] == task["data_url"])


@lru_cache(maxsize=1024)
def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
