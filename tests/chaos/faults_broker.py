"""Faults of RabbitMQ: its nodes, connections and alarms, and mistakes of operators in its topology."""

import asyncio
import signal
from typing import Any
from urllib.parse import quote

from ingest.domain.topology import INGEST_QUEUES
from tests.chaos.cluster import NODES, Node, off_loop
from tests.chaos.faults import fault, require
from tests.chaos.world import World
from tests.servers.process import wait_until

_FULL = 5
"""Messages that a full queue holds."""
_QUEUES = (*INGEST_QUEUES, "consensus.tasks", "webhook.dispatch")


@fault("rabbit-kill-leader")
async def kill_leader(world: World) -> str:
    """Kill the node that leads ingest.http.0 (SIGKILL)"""
    leader = await off_loop(world.cluster.leader, "ingest.http.0")
    await off_loop(leader.process.kill)
    await world.hold(5)
    successor = await _leader_other_than(world, leader)
    await off_loop(world.cluster.boot, [leader])
    require(successor, "no other node became the leader")
    return f"{_short(leader)} led ingest.http.0 and was killed, {successor} leads now"


@fault("rabbit-kill-two")
async def kill_two(world: World) -> str:
    """Kill two nodes of three (SIGKILL), so that there is no quorum"""
    leader = await off_loop(world.cluster.leader, "ingest.http.0")
    other = world.rng.choice([node for node in world.cluster.nodes if node is not leader])
    before = _unsuccessful(world)
    await _kill_and_restart(world, [leader, other], 8)
    unsuccessful = _unsuccessful(world) - before
    require(unsuccessful, "every attempt succeeded")
    return f"{_short(leader)} and {_short(other)} killed and restarted; {unsuccessful} attempts failed or got no answer"


@fault("rabbit-kill-all")
async def kill_all(world: World) -> str:
    """Kill all three nodes (SIGKILL) and restart them"""
    before = _unsuccessful(world)
    await _kill_and_restart(world, world.cluster.nodes, 5)
    unsuccessful = _unsuccessful(world) - before
    require(unsuccessful, "every attempt succeeded")
    return f"three nodes killed and restarted; {unsuccessful} attempts failed or got no answer"


@fault("rabbit-stop")
async def stop(world: World) -> str:
    """Stop the node that leads ingest.http.0 (SIGSTOP) for 30 s"""
    leader = await off_loop(world.cluster.leader, "ingest.http.0")
    leader.process.signal(signal.SIGSTOP)
    try:
        await world.hold(30)
        other = next(node for node in world.cluster.nodes if node is not leader)
        answer = await off_loop(other.ctl, "eval", "ra_leaderboard:lookup_leader('%2F_ingest.http.0').")
        state = leader.state()
    finally:
        leader.process.signal(signal.SIGCONT)
    require(state == "T", f"the process is in state {state}")
    successor = next((_short(node) for node in world.cluster.nodes if node.name in answer), "none of the nodes")
    return f"{_short(leader)} led ingest.http.0 and was stopped (process state T); then {successor} led it"


@fault("rabbit-partition")
async def partition(world: World) -> str:
    """Separate the node that leads ingest.http.0 from the two others for 30 s; clients reach all three"""
    leader = await off_loop(world.cluster.leader, "ingest.http.0")
    other = next(node for node in world.cluster.nodes if node is not leader)
    await off_loop(world.cluster.isolate, leader, True)
    try:
        successes = await world.successes_during(30)
        known = await off_loop(world.cluster.connected, other)
        successor = await _leader_other_than(world, leader, via=other)
    finally:
        await off_loop(world.cluster.isolate, leader, False)
    await off_loop(wait_until, lambda: len(world.cluster.connected(other)) == NODES - 1, "the cluster")
    require(leader.name not in known and successor, f"connected to {known}; leader: {successor}")
    return f"{_short(leader)} led ingest.http.0, then {successor} without it; meanwhile {successes} attempts succeeded"


@fault("rabbit-close-connections")
async def close_connections(world: World) -> str:
    """Let the broker close all connections, twice"""
    closed = await off_loop(world.cluster.close_connections)
    await world.hold(2)
    closed += await off_loop(world.cluster.close_connections)
    require(closed, "no connection was open")
    return f"{closed} connections closed"


@fault("rabbit-memory-alarm")
async def memory_alarm(world: World) -> str:
    """Raise a memory alarm, which blocks publishers on every node"""
    alarmed = world.rng.choice(world.cluster.nodes)
    before = world.workload.counts["unavailable"]
    await off_loop(alarmed.ctl, "set_vm_memory_high_watermark", "0.00001")
    try:
        await world.hold(10)
        alarms = [node["mem_alarm"] for node in await off_loop(world.cluster.api, "GET", "nodes")]
    finally:
        await off_loop(alarmed.ctl, "set_vm_memory_high_watermark", "0.6")
    require(any(alarms), f"no alarm: {alarms}")
    return f"mem_alarm on {_short(alarmed)}; {world.workload.counts['unavailable'] - before} attempts answered with 503"


@fault("rabbit-binding-removed")
async def binding_removed(world: World) -> str:
    """Remove the bindings of all ingest queues, so that submissions are unroutable"""
    before = world.workload.counts["unavailable"]
    for queue in INGEST_QUEUES:
        await _unbind(world, "asg.submissions", queue)
    await world.hold(6)
    unroutable = world.workload.counts["unavailable"] - before
    await world.ingest("topology", "apply")
    require(unroutable, "no submission was unroutable")
    return _unroutable_proof(unroutable)


@fault("rabbit-events-unroutable")
async def events_unroutable(world: World) -> str:
    """Remove the bindings of both outgoing queues, so that acceptance events are unroutable"""
    # A broker returns a message only if it routes it to no queue at all. While only one of the two bindings is missing,
    # an event for both queues would be lost for one of them. So events for both queues are not produced.
    world.workload.callbacks = False
    await _drain(world)
    before = _count_in_worker_logs(world, '"unroutable"')
    try:
        for queue in ("webhook.dispatch", "consensus.tasks"):
            await _unbind(world, "asg.events", queue)
        world.workload.resume()
        await world.hold(8)
        returned = _count_in_worker_logs(world, '"unroutable"') - before
    finally:
        world.workload.resume()
        await world.ingest("topology", "apply")
        world.workload.callbacks = True
    require(returned, "no worker had an event returned")
    return f"workers had events returned {returned} times and kept the submissions; fixed with `ingest topology apply`"


@fault("rabbit-queue-full")
async def queue_full(world: World) -> str:
    """Fill the outgoing and ingest queues (reject-publish)"""
    unavailable_before = world.workload.counts["unavailable"]
    world.observer.pause()
    for queue in _QUEUES:
        definition = {"overflow": "reject-publish", "max-length": _FULL}
        if queue.startswith("ingest"):
            definition |= {
                "delivery-limit": 20,
                "dead-letter-exchange": "asg.dead",
                "dead-letter-strategy": "at-least-once",
            }
        await _policy(world, "PUT", queue, definition)
    try:
        await world.hold(12)
        depths = await off_loop(world.cluster.depths)
    finally:
        for queue in _QUEUES:
            await _policy(world, "DELETE", queue, None)
        world.observer.resume()
    # Workers set submissions apart whose events are refused, so the ingest queues need not become full.
    full = [queue for queue, depth in depths.items() if depth >= _FULL]
    refused = world.workload.counts["unavailable"] - unavailable_before
    require(any(not queue.startswith("ingest") for queue in full), f"no outgoing queue was full: {depths}")
    return f"{', '.join(full)} full, {refused} submissions were refused"


@fault("rabbit-queue-deleted")
async def queue_deleted(world: World) -> str:
    """Delete the ingest queues while they are empty; messages of a deleted queue could not be recovered"""
    try:
        await _drain(world)
        for queue in INGEST_QUEUES:
            await off_loop(world.cluster.api, "DELETE", f"queues/%2F/{queue}")
    finally:
        world.workload.resume()
    before = world.workload.counts["unavailable"]
    await world.hold(6)
    unroutable = world.workload.counts["unavailable"] - before
    await world.ingest("topology", "apply")
    require(unroutable, "no submission was unroutable")
    return _unroutable_proof(unroutable)


@fault("rabbit-ack-timeout")
async def ack_timeout(world: World) -> str:
    """Let workers hold deliveries in an outage for longer than the acknowledgement timeout (set to 5 s)"""

    def count() -> int:
        # Up to 4.2 RabbitMQ closes the channel and logs that; from 4.3 on it cancels the consumer.
        closed = sum(node.log_text().count("timed out") for node in world.cluster.nodes)
        return closed + sum(worker.count_events("consumer_cancelled") for worker in world.workers)

    before = count()
    # RabbitMQ checks the timeout with every tick of a channel, by default once a minute.
    answers = await off_loop(
        world.cluster.evaluate,
        "application:set_env(rabbit, channel_tick_interval, 2000), "
        "application:set_env(rabbit, consumer_timeout, 5000).",
    )
    require(all(answer == "ok" for answer in answers), f"the timeout could not be set: {answers}")
    await off_loop(world.cluster.close_connections)  # a channel reads the timeout when it is opened
    await asyncio.sleep(3)
    try:
        async with world.store_stopped():
            await asyncio.sleep(12)
    finally:
        await off_loop(world.cluster.evaluate, "application:set_env(rabbit, consumer_timeout, 1800000).")
        await off_loop(world.cluster.close_connections)
    timeouts = count() - before
    require(timeouts, "no consumer was stopped because of a delivery acknowledgement timeout")
    return f"RabbitMQ stopped {timeouts} consumers because of its ack timeout"


async def _kill_and_restart(world: World, nodes: list[Node], seconds: float) -> None:
    for node in nodes:
        await off_loop(node.process.kill)
    await world.hold(seconds)
    await off_loop(world.cluster.boot, nodes)


async def _drain(world: World) -> None:
    """Pause the workload, and wait until everything that was sent is processed."""
    world.workload.pause()
    for _ in range(3):
        await world.workload.idle(60)
        if await world.quiet(1.0, 30):
            return
    require(False, "the queues did not become empty")


async def _leader_other_than(world: World, node: Node, via: Node | None = None) -> str:
    """Wait up to 15 s until another node leads ingest.http.0; return its short name, empty if there is none.

    Asks the node `via`, by default any that answers.
    """
    others = {other.name for other in world.cluster.nodes if other is not node}
    api = via.api if via else world.cluster.api
    for _ in range(50):
        queue = await off_loop(api, "GET", "queues/%2F/ingest.http.0")
        leader = str(queue.get("leader") or "")
        if leader in others:
            return leader.partition("-")[0]
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


def _unsuccessful(world: World) -> int:
    """Return how many attempts so far were answered with "unavailable" or not at all."""
    return world.workload.counts["unavailable"] + world.workload.counts["unknown"]


def _unroutable_proof(count: int) -> str:
    return f"{count} submissions unroutable: 503 or returned to their producer; fixed with `ingest topology apply`"


def _count_in_worker_logs(world: World, text: str) -> int:
    return sum(worker.count_in_log(text) for worker in world.workers)


def _short(node: Node) -> str:
    return node.name.partition("-")[0]
