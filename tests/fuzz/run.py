"""One run: send submissions, wait until all are finished, check the invariants."""

import time

import msgspec

from tests.fuzz.amqp import Producer
from tests.fuzz.http import Requests
from tests.fuzz.watch import Watch
from tests.fuzz.world import CUSTOMER, World

LARGE = 0.0005
"""Share of bodies that have about 8 MiB."""
GROWTH = 60.0
"""MB that a process may grow after the first tenth of a run: the allocator keeps memory of concurrent large bodies."""


class Outcome(msgspec.Struct):
    """Result of a run. `violations` is empty if every invariant holds; `before` and `after` are MB of each process."""

    entry_point: str
    bodies: int
    seed: int
    seconds: float
    counts: dict[str, int]
    before: dict[str, float]
    after: dict[str, float]
    violations: list[str]


async def fuzz_http(world: World, count: int, seed: int) -> Outcome:
    """Check that no answer is a 5xx, and that exactly the task ids in 2xx answers have one event each."""
    watch = Watch(world.admin_url)
    await watch.start()
    began = time.monotonic()
    requests = Requests(world, seed, LARGE)
    await requests.send(range(count // 10))
    before = world.memory()
    await requests.send(range(count // 10, count))
    await watch.until_tasks(len(requests.ids), 20)
    after = world.memory()
    await watch.close()
    violations = requests.wrong[:10] + world.defects() + _grown(before, after)
    if set(watch.tasks) != requests.ids:
        lost, unknown = requests.ids - set(watch.tasks), set(watch.tasks) - requests.ids
        violations.append(f"{len(lost)} task ids in 2xx answers have no event, {len(unknown)} others have one")
    if repeated := [task_id for task_id, events in watch.tasks.items() if events > 1]:
        violations.append(f"{len(repeated)} tasks have more than one event")
    if watch.dead:
        violations.append(f"the worker rejected submissions that the shim had admitted: {watch.dead}")
    counts = {str(status): number for status, number in sorted(requests.statuses.items())} | {
        "tasks": len(requests.ids)
    }
    return Outcome("http", count, seed, round(time.monotonic() - began, 1), counts, before, after, violations)


async def fuzz_amqp(world: World, count: int, seed: int) -> Outcome:
    """Check that each confirmed message has one outcome: accepted, duplicate, or in ingest.dead with a reason."""
    watch = Watch(world.admin_url)
    await watch.start()
    began = time.monotonic()
    producer = Producer(world.producer_urls[CUSTOMER], seed, LARGE)
    await producer.send(range(count // 10))
    await watch.until(count // 10, 20)
    before = world.memory()
    await producer.send(range(count // 10, count))
    await watch.until(count, 20)
    after = world.memory()
    await producer.close()
    await watch.close()
    violations = world.defects() + _grown(before, after)
    if (producer.confirmed, producer.nacked) != (count, 0):
        violations.append(f"{producer.confirmed} of {count} messages were confirmed, {producer.nacked} nacked")
    if watch.submissions != count:
        violations.append(f"{count} submissions have {watch.submissions} outcomes")
    if lost := producer.ids - set(watch.tasks):
        violations.append(f"{len(lost)} valid tasks were not accepted")
    if repeated := [task_id for task_id, events in watch.tasks.items() if events > 1]:
        violations.append(f"{len(repeated)} tasks have more than one event")
    if sum(watch.dead.values()) != watch.outcomes["submission.rejected"] or "None" in watch.dead:
        violations.append(f"dead letters {watch.dead}, but {watch.outcomes['submission.rejected']} rejection events")
    if "delivery_limit" in watch.dead:
        violations.append("messages were redelivered up to the delivery limit")
    counts = {**dict(sorted(watch.outcomes.items())), **{f"dead {name}": n for name, n in sorted(watch.dead.items())}}
    return Outcome("amqp", count, seed, round(time.monotonic() - began, 1), counts, before, after, violations)


def _grown(before: dict[str, float], after: dict[str, float]) -> list[str]:
    return [
        f"the {name} grew from {before[name]} to {after[name]} MB"
        for name in before
        if after[name] > before[name] + GROWTH
    ]
