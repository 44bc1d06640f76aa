"""What befalls RabbitMQ: nodes, connections, alarms, and what operators do to its topology."""

import asyncio
import signal
from typing import Any
from urllib.parse import quote

from tests.chaos.cluster import Node, off_loop
from tests.chaos.faults import fault, need
from tests.chaos.world import World

_QUEUES = ("ingest.tasks", "ingest.batches", "consensus.tasks", "webhook.dispatch")


async def _kill(world: World, nodes: list[Node], seconds: float) -> None:
    for node in nodes:
        await off_loop(node.process.kill)
    await world.hold(seconds)
    await off_loop(world.cluster.boot, nodes)


@fault("rabbit-kill-leader")
async def kill_leader(world: World) -> str:
    """SIGKILL of the node that leads ingest.tasks"""
    leader = await off_loop(world.cluster.leader, "ingest.tasks")
    await off_loop(leader.process.kill)
    await world.hold(5)
    successor = await _leader_other_than(world, leader)
    await off_loop(world.cluster.boot, [leader])
    need(successor, "no other node became the leader")
    return f"{_short(leader)} led ingest.tasks and was killed, {successor} leads now"


@fault("rabbit-kill-two")
async def kill_two(world: World) -> str:
    """SIGKILL of two nodes of three: no quorum"""
    leader = await off_loop(world.cluster.leader, "ingest.tasks")
    other = world.rng.choice([node for node in world.cluster.nodes if node is not leader])
    before = world.workload.counts["unavailable"] + world.workload.counts["unknown"]
    await _kill(world, [leader, other], 8)
    refused = world.workload.counts["unavailable"] + world.workload.counts["unknown"] - before
    need(refused, "nothing was refused")
    return f"{_short(leader)} and {_short(other)} killed and restarted; {refused} attempts were not promised anything"


@fault("rabbit-kill-all")
async def kill_all(world: World) -> str:
    """SIGKILL of all three nodes, restart"""
    before = world.workload.counts["unavailable"] + world.workload.counts["unknown"]
    await _kill(world, world.cluster.nodes, 5)
    refused = world.workload.counts["unavailable"] + world.workload.counts["unknown"] - before
    need(refused, "nothing was refused")
    return f"three nodes killed and restarted; {refused} attempts were not promised anything"


@fault("rabbit-stop")
async def stop(world: World) -> str:
    """SIGSTOP for 30 s of the node that leads ingest.tasks"""
    leader = await off_loop(world.cluster.leader, "ingest.tasks")
    leader.process.signal(signal.SIGSTOP)
    try:
        await world.hold(30)
        other = next(node for node in world.cluster.nodes if node is not leader)
        now = await off_loop(other.ctl, "eval", "ra_leaderboard:lookup_leader('%2F_ingest.tasks').")
        state = leader.state()
    finally:
        leader.process.signal(signal.SIGCONT)
    need(state == "T", f"the process is in state {state}")
    by_then = next((_short(node) for node in world.cluster.nodes if node.name in now), "nobody")
    return f"{_short(leader)} led ingest.tasks and was stopped (process state T); after it {by_then} led it"


@fault("rabbit-close-connections")
async def close_connections(world: World) -> str:
    """The broker closes all connections, twice"""
    closed = await off_loop(world.cluster.close_connections)
    await world.hold(2)
    closed += await off_loop(world.cluster.close_connections)
    need(closed, "there was no connection")
    return f"{closed} connections closed"


@fault("rabbit-memory-alarm")
async def memory_alarm(world: World) -> str:
    """A memory alarm: publishers are blocked, everywhere"""
    node = world.rng.choice(world.cluster.nodes)
    before = world.workload.counts["unavailable"]
    await off_loop(node.ctl, "set_vm_memory_high_watermark", "0.00001")
    try:
        await world.hold(10)
        alarms = await off_loop(lambda: [each["mem_alarm"] for each in world.cluster.api("GET", "nodes")])
    finally:
        await off_loop(node.ctl, "set_vm_memory_high_watermark", "0.6")
    need(any(alarms), f"no alarm: {alarms}")
    return f"mem_alarm on {_short(node)}; {world.workload.counts['unavailable'] - before} attempts answered with 503"


@fault("rabbit-binding-removed")
async def binding_removed(world: World) -> str:
    """The bindings of both ingest queues are removed: submissions are unroutable"""
    before = world.workload.counts["unavailable"]
    for queue in ("ingest.tasks", "ingest.batches"):
        await _unbind(world, "asg.submissions", queue)
    await world.hold(6)
    refused = world.workload.counts["unavailable"] - before
    await world.ingest("topology", "apply")
    need(refused, "nothing was refused")
    return f"{refused} submissions unroutable: 503, or returned to their producer; then `ingest topology apply`"


@fault("rabbit-events-unroutable")
async def events_unroutable(world: World) -> str:
    """The bindings of both outgoing queues are removed: acceptance events are unroutable"""
    # A broker returns what no queue takes. What one of two queues takes is not returned, so for as long as just one
    # binding may be missing nothing is sent that is for both.
    world.workload.callbacks = False
    await _calm(world)
    waiting = sum(worker.lines('"unroutable"') for worker in world.workers)
    try:
        for queue in ("webhook.dispatch", "consensus.tasks"):
            await _unbind(world, "asg.events", queue)
        world.workload.resume()
        await world.hold(8)
        waiting = sum(worker.lines('"unroutable"') for worker in world.workers) - waiting
    finally:
        world.workload.resume()
        await world.ingest("topology", "apply")
        world.workload.callbacks = True
    need(waiting, "no worker had an event returned")
    return f"workers had events returned {waiting} times and kept the submissions; then `ingest topology apply`"


@fault("rabbit-queue-full")
async def queue_full(world: World) -> str:
    """Outgoing and ingest queues full (reject-publish)"""
    nacked = sum(worker.lines('"nacked"') for worker in world.workers)
    before = world.workload.counts["unavailable"]
    world.observer.pause()
    for queue in _QUEUES:
        plain = {"overflow": "reject-publish", "max-length": 5}
        if queue.startswith("ingest"):
            plain |= {"delivery-limit": 20, "dead-letter-exchange": "asg.dead", "dead-letter-strategy": "at-least-once"}
        await _policy(world, "PUT", queue, plain)
    try:
        await world.hold(12)
    finally:
        for queue in _QUEUES:
            await _policy(world, "DELETE", queue, None)
        world.observer.resume()
    nacked = sum(worker.lines('"nacked"') for worker in world.workers) - nacked
    refused = world.workload.counts["unavailable"] - before
    need(nacked and refused, f"{nacked} nacks at workers, {refused} refused submissions")
    return f"workers had events nacked {nacked} times, {refused} submissions were refused"


@fault("rabbit-queue-deleted")
async def queue_deleted(world: World) -> str:
    """ingest.tasks is deleted, while it is empty: what a deleted queue held nobody can bring back"""
    try:
        await _calm(world)
        await off_loop(world.cluster.api, "DELETE", "queues/%2F/ingest.tasks")
    finally:
        world.workload.resume()
    before = world.workload.counts["unavailable"]
    await world.hold(6)
    refused = world.workload.counts["unavailable"] - before
    await world.ingest("topology", "apply")
    need(refused, "nothing was refused")
    return f"{refused} submissions unroutable: 503, or returned to their producer; then `ingest topology apply`"


@fault("rabbit-ack-timeout")
async def ack_timeout(world: World) -> str:
    """Delivery acknowledgement timeout (set to 5 s) while workers hold deliveries through an outage"""
    said = "timed out"
    before = sum(node.logged().count(said) for node in world.cluster.nodes)
    # Looked at with every tick of a channel, by default once a minute.
    await off_loop(
        world.cluster.evaluate,
        "application:set_env(rabbit, channel_tick_interval, 2000), "
        "application:set_env(rabbit, consumer_timeout, 5000).",
    )
    await off_loop(world.cluster.close_connections)  # channels read it when they are opened
    await asyncio.sleep(3)
    world.store.process.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(12)
    finally:
        world.store.process.signal(signal.SIGCONT)
        await off_loop(world.cluster.evaluate, "application:set_env(rabbit, consumer_timeout, 1800000).")
        await off_loop(world.cluster.close_connections)
    after = sum(node.logged().count(said) for node in world.cluster.nodes) - before
    need(after, "RabbitMQ's log has no delivery acknowledgement timeout")
    return f"RabbitMQ closed channels for it {after} times"


async def _calm(world: World) -> None:
    """Stop sending, and wait until all that was sent is through."""
    world.workload.pause()
    for _ in range(3):
        await world.workload.idle(60)
        if await world.quiet(1.0, 30):
            return
    need(False, "the queues did not become empty")


async def _leader_other_than(world: World, node: Node) -> str:
    for _ in range(50):
        now = await off_loop(world.cluster.api, "GET", "queues/%2F/ingest.tasks")
        name = str(now.get("leader") or "")
        if name and name != node.name and name in {each.name for each in world.cluster.nodes}:
            return name.partition("-")[0]
        await asyncio.sleep(0.3)
    return ""


async def _unbind(world: World, exchange: str, queue: str) -> None:
    path = f"bindings/%2F/e/{exchange}/q/{queue}"
    for binding in await off_loop(world.cluster.api, "GET", path):
        await off_loop(world.cluster.api, "DELETE", f"{path}/{quote(binding['properties_key'], safe='')}")


async def _policy(world: World, method: str, queue: str, definition: dict[str, Any] | None) -> None:
    body = definition and {
        "pattern": f"^{queue.replace('.', '[.]')}$",
        "apply-to": "queues",
        "priority": 9,
        "definition": definition,
    }
    await off_loop(world.cluster.api, method, f"policies/%2F/full-{queue}", body)


def _short(node: Node) -> str:
    return node.name.partition("-")[0]
