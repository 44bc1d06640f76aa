"""Faults of one node of an Aerospike cluster."""

import asyncio
import signal
import time
from collections.abc import Callable

from tests.chaos.cluster import off_loop
from tests.chaos.faults import fault, require
from tests.chaos.world import World
from tests.servers.aerospike_cluster import AerospikeNode


@fault("store-node-kill", aerospike_nodes=3)
async def kill(world: World) -> str:
    """Kill one Aerospike node (SIGKILL) and restart it with its data"""
    return await _kill_and_restart(world, wiped=False)


@fault("store-node-wipe", aerospike_nodes=3)
async def wipe(world: World) -> str:
    """Kill one Aerospike node (SIGKILL) and restart it without its data"""
    return await _kill_and_restart(world, wiped=True)


@fault("store-node-stop", aerospike_nodes=3)
async def stop(world: World) -> str:
    """Stop one Aerospike node (SIGSTOP) for 30 s; afterwards it does not know yet that the others went on"""
    node = world.rng.choice(world.store.nodes)
    async with world.store_split():
        node.process.signal(signal.SIGSTOP)
        try:
            formed = await _others_form_a_cluster(world, node)
            successes = await world.successes_during(30)
            stopped = node.process.is_stopped()
        finally:
            node.process.signal(signal.SIGCONT)
    require(formed and stopped, f"cluster of the other nodes: {formed}; process stopped: {stopped}")
    return f"{_name(world, node)} stopped; without it the others took {successes} submissions"


@fault("store-split", aerospike_nodes=3)
async def split(world: World) -> str:
    """Separate one Aerospike node from the two others; clients reach only that one for 8 s, then all for 20 s"""
    node = world.rng.choice(world.store.nodes)
    others = [proxy for proxy, other in zip(world.store.proxies, world.store.nodes, strict=True) if other is not node]
    async with world.store_split():
        before = await off_loop(node.writes)
        await off_loop(node.isolate, True)
        try:
            for proxy in others:
                proxy.black_hole(True)
            formed = await _others_form_a_cluster(world, node)
            await world.hold(8)
            for proxy in others:
                proxy.black_hole(False)
            written = await off_loop(node.writes) - before
            successes = await world.successes_during(20)
            stopped = await _becomes(node.serves_nothing)
        finally:
            for proxy in others:
                proxy.black_hole(False)
            await off_loop(node.isolate, False)
    require(
        formed and stopped and written,
        f"cluster of the others: {formed}; {_name(world, node)} stopped serving: {stopped}, after {written} writes",
    )
    return (
        f"{_name(world, node)} wrote {written} records alone, then stopped serving; the others were a cluster and took "
        f"{successes} submissions"
    )


@fault("store-rolling-restart", aerospike_nodes=3)
async def rolling_restart(world: World) -> str:
    """Restart every Aerospike node (SIGTERM), one after the other, each when no records are being moved"""
    before, begin = world.workload.successes, time.monotonic()
    codes = []
    for node in world.store.nodes:
        codes.append(await off_loop(node.shut_down))
        await off_loop(world.store.restart, [node])
    require(not any(codes), f"exit codes {codes}")
    took, successes = time.monotonic() - begin, world.workload.successes - before
    return f"{len(codes)} nodes restarted in {took:.0f} s, meanwhile {successes} submissions were taken"


async def _kill_and_restart(world: World, *, wiped: bool) -> str:
    node = world.rng.choice(world.store.nodes)
    before = await off_loop(_entries, node)
    await off_loop(node.kill)
    formed = await _others_form_a_cluster(world, node)
    successes = await world.successes_during(8)
    if wiped:
        await off_loop(node.wipe)
    begin = time.monotonic()
    await off_loop(world.store.restart, [node])
    took, after = time.monotonic() - begin, await off_loop(_entries, node)
    require(formed and before and after, f"others formed a cluster: {formed}; entries {before}, then {after}")
    return (
        f"{_name(world, node)} killed with {before} ledger entries, restarted with{'out' * wiped} its data; meanwhile "
        f"the others took {successes} submissions; {took:.1f} s later it had {after} entries"
    )


async def _others_form_a_cluster(world: World, node: AerospikeNode) -> bool:
    """Wait up to 15 s until the other nodes are a cluster without this one; return whether they are."""
    others = [other for other in world.store.nodes if other is not node]
    return await _becomes(lambda: {other.statistics()["cluster_size"] for other in others} == {str(len(others))})


async def _becomes(condition: Callable[[], bool]) -> bool:
    """Wait up to 15 s until a condition is true; return whether it is."""
    for _ in range(75):
        if await off_loop(condition):
            return True
        await asyncio.sleep(0.2)
    return False


def _entries(node: AerospikeNode) -> int:
    answer = node.info("sets/test/ledger").strip(";")
    return int(dict(pair.partition("=")[::2] for pair in answer.split(":")).get("objects", 0))


def _name(world: World, node: AerospikeNode) -> str:
    return f"aerospike{world.store.nodes.index(node)}"
