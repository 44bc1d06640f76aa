"""What befalls Aerospike."""

import asyncio
import signal

from tests.chaos.cluster import off_loop
from tests.chaos.faults import fault, need
from tests.chaos.store import FLUSH
from tests.chaos.world import World


@fault("store-kill")
async def kill(world: World) -> str:
    """SIGKILL of Aerospike, restart with its data"""
    store = world.store
    world.store_proxy.black_hole(True)  # what it has acknowledged gets to the file; a real crash is `store-truncate`
    await asyncio.sleep(FLUSH + 0.1)
    before = await off_loop(store.objects, "ledger")
    await off_loop(store.process.kill)
    world.store_proxy.cut_now()
    world.store_proxy.black_hole(False)
    await world.hold(5)
    await off_loop(store.start)
    after = await off_loop(store.objects, "ledger")
    need(after >= before > 0, f"{before} entries before, {after} after")
    return f"asd killed and restarted: {before} ledger entries before, {after} right after"


@fault("store-stop")
async def stop(world: World) -> str:
    """SIGSTOP of Aerospike for 30 s: longer than workers hold their deliveries"""
    returned_event, opened_event = '"event":"outage_deliveries_returned"', '"event":"circuit_opened"'
    returned_before = sum(worker.lines(returned_event) for worker in world.workers)
    opened_before = sum(worker.lines(opened_event) for worker in world.workers)
    world.store.process.signal(signal.SIGSTOP)
    try:
        await world.hold(30)
    finally:
        world.store.process.signal(signal.SIGCONT)
    opened = sum(worker.lines(opened_event) for worker in world.workers) - opened_before
    returned = sum(worker.lines(returned_event) for worker in world.workers) - returned_before
    need(opened, "no worker opened its circuit breaker")
    return f"asd stopped; {opened} workers opened the circuit breaker, {returned} returned their deliveries"


@fault("store-resets")
async def resets(world: World) -> str:
    """Connections to Aerospike reset twice a second"""
    before = world.store_proxy.cuts
    for _ in range(max(4, int(16 * world.span))):
        world.store_proxy.cut()
        await asyncio.sleep(0.5)
    cuts = world.store_proxy.cuts - before
    need(cuts, "no connection was cut")
    return f"{cuts} connections to Aerospike reset in the middle of what they carried"


@fault("store-stop-writes")
async def stop_writes(world: World) -> str:
    """Aerospike refuses writes and serves reads"""
    set_ = "set-config:context=namespace;id=test;stop-writes-sys-memory-pct="
    answer = await off_loop(world.store.info, f"{set_}1")
    try:
        for _ in range(100):
            if await off_loop(world.store.statistic, "stop_writes") == "true":
                break
            await asyncio.sleep(0.2)
        else:
            need(False, f"stop_writes is not true; set-config: {answer}")
        await world.hold(8)
    finally:
        await off_loop(world.store.info, f"{set_}90")
    for _ in range(100):
        if await off_loop(world.store.statistic, "stop_writes") == "false":
            break
        await asyncio.sleep(0.2)
    return "namespace statistic stop_writes was true"


@fault("store-truncate")
async def truncate(world: World) -> str:
    """Every record of the ledger is lost, under load"""
    before = await off_loop(world.store.objects, "ledger")
    loop = asyncio.get_running_loop()
    world.history.truncated.append(loop.time())
    await off_loop(world.store.truncate, "ledger")
    after = await off_loop(world.store.objects, "ledger")
    world.history.truncated.append(loop.time())
    need(after < before, f"{before} entries before, {after} after")
    return f"{before} ledger entries before, {after} right after"
