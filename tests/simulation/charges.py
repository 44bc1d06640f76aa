"""Exact charging: never too little; too much only for what a crashed process had in flight."""

from collections import Counter, defaultdict
from datetime import UTC, datetime

from tests.simulation.customers import CUSTOMERS
from tests.simulation.output import Output, acceptances
from tests.simulation.schedule import Crash, Doubt, Pause, Stop
from tests.simulation.world import World


def charges(world: World, output: Output) -> list[str]:
    """Return the customers that are charged for too few or too many tasks, as sentences."""
    problems = list(world.store.problems)
    used: Counter[str] = Counter()
    for (cust_id, _), count in world.store.used.items():
        used[cust_id] += count
    accepted = _accepted(output)
    excused = _excused(world)
    for cust_id in CUSTOMERS:
        tasks = sum(accepted[cust_id].values())
        if used[cust_id] < tasks:
            problems.append(f"{cust_id} is charged for {used[cust_id]} tasks, {tasks} were accepted")
        most = max(tasks, world.store.accepted[cust_id]) + excused[cust_id]
        if (overdrawn := world.store.overdrawn[cust_id]) and not leaves_claims(world):
            problems.append(f"{cust_id} got {overdrawn} tasks beyond its quota")
        if used[cust_id] > most:
            problems.append(f"{cust_id} is charged for {used[cust_id]} tasks, at most {most} are correct")
        elif not excused[cust_id] and not world.schedule.skews:
            problems += _in_wrong_month(world, cust_id, accepted[cust_id])
    return problems


def leaves_claims(world: World) -> bool:
    """Return whether a submission that was not admitted may have left its claim.

    A process has crashed, or a call to the store takes effect late.
    """
    return any(
        isinstance(action, Crash | Pause | Stop) or (isinstance(action, Doubt) and action.server == "store")
        for action in world.schedule.actions
    )


def _accepted(output: Output) -> dict[str, Counter[str]]:
    """Return the number of accepted tasks by customer and by the month of their admission."""
    accepted: dict[str, Counter[str]] = defaultdict(Counter)
    for events in output.tasks.values():
        cust_id = events[0].data["cust_id"]
        for group in acceptances(events):
            accepted[cust_id][datetime.fromtimestamp(group[0].created_at, UTC).strftime("%Y-%m")] += 1
    return accepted


def _excused(world: World) -> Counter[str]:
    """Return the number of tasks that may be charged in addition: in flight at a crash, or in a lost record."""
    excused = Counter(world.store.lost)
    for process in world.processes.values():
        excused += process.interrupted
    return excused


def _in_wrong_month(world: World, cust_id: str, accepted: Counter[str]) -> list[str]:
    """A task is charged in the month of its admission, or in a later one if its first attempts were not charged."""
    problems = []
    months = sorted({*accepted, *[month for customer, month in world.store.used if customer == cust_id]})
    for month in months[1:]:
        used = sum(
            count for (customer, name), count in world.store.used.items() if customer == cust_id and name >= month
        )
        admitted = sum(count for name, count in accepted.items() if name >= month)
        if used < admitted:
            problems.append(f"{cust_id} is charged for {used} tasks from {month} on, {admitted} were admitted then")
    return problems
