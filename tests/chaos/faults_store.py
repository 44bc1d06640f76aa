"""Faults of Aerospike."""

import asyncio

from tests.chaos.cluster import off_loop
from tests.chaos.faults import fault, require
from tests.chaos.world import World
from tests.servers.aerospike_cluster import FLUSH


@fault("store-kill")
async def kill(world: World) -> str:
    """Kill Aerospike (SIGKILL), every node, and restart it with its data"""
    store = world.store
    # Acknowledged writes reach the file before the kill; `store-truncate` injects the loss of records.
    for proxy in store.proxies:
        proxy.black_hole(True)
    await asyncio.sleep(FLUSH + 0.1)
    before = await off_loop(store.objects, "ledger")
    for node in store.nodes:
        await off_loop(node.kill)
    for proxy in store.proxies:
        proxy.cut_now()
        proxy.black_hole(False)
    await world.hold(5)
    await off_loop(store.restart, store.nodes)
    after = await off_loop(store.objects, "ledger")
    require(after >= before > 0, f"{before} entries before, {after} after")
    return f"asd killed and restarted: {before} ledger entries before, {after} right after"


@fault("store-stop")
async def stop(world: World) -> str:
    """Stop Aerospike (SIGSTOP), every node, for 30 s, which is longer than workers hold their deliveries"""
    opened_before = _counts(world, "circuit_opened")
    returned_before = _counts(world, "outage_deliveries_returned")
    async with world.store_stopped():
        await world.hold(30)
    opened = _increased(opened_before, _counts(world, "circuit_opened"))
    returned = _increased(returned_before, _counts(world, "outage_deliveries_returned"))
    require(opened, "no worker opened its circuit breaker")
    return f"asd stopped; {opened} workers opened the circuit breaker, {returned} returned their deliveries"


@fault("store-resets")
async def resets(world: World) -> str:
    """Reset the connections to Aerospike twice a second"""
    before = sum(proxy.cuts for proxy in world.store.proxies)
    for _ in range(max(4, int(16 * world.span))):
        for proxy in world.store.proxies:
            proxy.cut()
        await asyncio.sleep(0.5)
    cuts = sum(proxy.cuts for proxy in world.store.proxies) - before
    require(cuts, "no connection was cut")
    return f"{cuts} connections to Aerospike reset in the middle of what they carried"


@fault("store-stop-writes")
async def stop_writes(world: World) -> str:
    """Make Aerospike refuse writes; it still serves reads"""
    command = "set-config:context=namespace;id=test;stop-writes-sys-memory-pct="
    answer = await off_loop(world.store.info, f"{command}1")
    try:
        stopped = await _stop_writes_becomes(world, "true")
        require(stopped, f"stop_writes is not true; set-config: {answer}")
        await world.hold(8)
    finally:
        await off_loop(world.store.info, f"{command}90")
    await _stop_writes_becomes(world, "false")
    return "namespace statistic stop_writes was true"


@fault("store-truncate")
async def truncate(world: World) -> str:
    """Delete every record of the ledger under load"""
    before = await off_loop(world.store.objects, "ledger")
    loop = asyncio.get_running_loop()
    world.history.truncated.append(loop.time())
    await off_loop(world.store.truncate, "ledger")
    after = await off_loop(world.store.objects, "ledger")
    world.history.truncated.append(loop.time())
    require(after < before, f"{before} entries before, {after} after")
    return f"{before} ledger entries before, {after} right after"


def _counts(world: World, event: str) -> list[int]:
    """Return how often each worker has logged this event."""
    return [worker.count_events(event) for worker in world.workers]


def _increased(before: list[int], after: list[int]) -> int:
    """Return how many workers have a higher count than before."""
    return sum(new > old for old, new in zip(before, after, strict=True))


async def _stop_writes_becomes(world: World, value: str) -> bool:
    """Wait up to 20 s until the statistic `stop_writes` has this value on every node; return whether it has."""
    for _ in range(100):
        if await off_loop(world.store.statistic, "stop_writes") == {value}:
            return True
        await asyncio.sleep(0.2)
    return False
