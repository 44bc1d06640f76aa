"""One run: send, wait until all has come to an end, check the invariants."""

import time

import msgspec

from tests.fuzz.amqp import Producer
from tests.fuzz.http import Requests
from tests.fuzz.watch import Watch
from tests.fuzz.world import CUSTOMER, World

LARGE = 0.0005
"""Share of bodies of about 8 MiB."""
GROWTH = 60.0
"""MB that a process may grow after its first tenth: what a few bodies of 8 MiB at once leave in the allocator."""


class Outcome(msgspec.Struct):
    """What a run has shown. `broken` is empty where every invariant holds."""

    way: str
    bodies: int
    seed: int
    seconds: float
    counts: dict[str, int]
    before: dict[str, float]
    after: dict[str, float]
    broken: list[str]


async def over_http(world: World, count: int, seed: int) -> Outcome:
    """Every answer below 500; each id that was told has one event, and no other has one."""
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
    broken = requests.wrong[:10] + world.defects() + _grown(before, after)
    if set(watch.tasks) != requests.ids:
        lost, strange = requests.ids - set(watch.tasks), set(watch.tasks) - requests.ids
        broken.append(f"{len(lost)} accepted and without an event, {len(strange)} events that nobody was told of")
    if doubled := [each for each, times in watch.tasks.items() if times > 1]:
        broken.append(f"{len(doubled)} tasks with more than one event")
    if watch.dead:
        broken.append(f"the worker has refused what the shim had taken: {watch.dead}")
    counts = {str(status): number for status, number in sorted(requests.statuses.items())} | {
        "tasks": len(requests.ids)
    }
    return Outcome("http", count, seed, round(time.monotonic() - began, 1), counts, before, after, broken)


async def over_amqp(world: World, count: int, seed: int) -> Outcome:
    """Each confirmed message comes to exactly one end: accepted, a duplicate, or in ingest.dead with a reason."""
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
    broken = world.defects() + _grown(before, after)
    if (producer.confirmed, producer.nacked) != (count, 0):
        broken.append(f"{producer.confirmed} confirmed, {producer.nacked} nacked of {count}")
    if watch.submissions != count:
        broken.append(f"{watch.submissions} ends of {count} submissions")
    if lost := producer.ids - set(watch.tasks):
        broken.append(f"{len(lost)} valid ones were not accepted")
    if doubled := [each for each, times in watch.tasks.items() if times > 1]:
        broken.append(f"{len(doubled)} tasks with more than one event")
    if sum(watch.dead.values()) != watch.outcomes["submission.rejected"] or "None" in watch.dead:
        broken.append(f"dead letters {watch.dead}, but {watch.outcomes['submission.rejected']} rejections told")
    if "delivery_limit" in watch.dead:
        broken.append("redelivered up to the limit")
    counts = {**dict(sorted(watch.outcomes.items())), **{f"dead {name}": n for name, n in sorted(watch.dead.items())}}
    return Outcome("amqp", count, seed, round(time.monotonic() - began, 1), counts, before, after, broken)


def _grown(before: dict[str, float], after: dict[str, float]) -> list[str]:
    return [
        f"{name} has grown from {before[name]} to {after[name]} MB"
        for name in before
        if after[name] > before[name] + GROWTH
    ]
