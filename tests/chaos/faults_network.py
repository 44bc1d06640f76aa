"""Faults of the network between the processes and their servers."""

import asyncio

from tests.chaos.faults import fault, require
from tests.chaos.proxy import Proxy
from tests.chaos.world import World


async def _delay(world: World, proxies: list[Proxy], seconds: float, server: str) -> str:
    for proxy in proxies:
        proxy.latency = seconds
    try:
        await world.hold(8)
    finally:
        for proxy in proxies:
            proxy.latency = 0.0
    return f"{seconds * 1000:.0f} ms on every packet to and from {server}"


async def _black_hole(world: World, proxies: list[Proxy], server: str) -> str:
    before = sum(proxy.held_bytes for proxy in proxies)
    for proxy in proxies:
        proxy.black_hole(True)
    try:
        await world.hold(15)
    finally:
        for proxy in proxies:
            proxy.black_hole(False)
    held = sum(proxy.held_bytes for proxy in proxies) - before
    require(held, "the proxies held no data")
    return f"nothing got through to or from {server}; {held} bytes waited"


@fault("net-broker-latency")
async def broker_latency(world: World) -> str:
    """Delay data to and from RabbitMQ by 200 ms"""
    return await _delay(world, world.broker_proxies, 0.2, "RabbitMQ")


@fault("net-store-latency")
async def store_latency(world: World) -> str:
    """Delay data to and from Aerospike by 200 ms"""
    return await _delay(world, world.store.proxies, 0.2, "Aerospike")


@fault("net-broker-blackhole")
async def broker_black_hole(world: World) -> str:
    """Hold back all data to and from RabbitMQ for longer than the heartbeats allow"""
    return await _black_hole(world, world.broker_proxies, "RabbitMQ")


@fault("net-store-blackhole")
async def store_black_hole(world: World) -> str:
    """Hold back all data to and from Aerospike"""
    return await _black_hole(world, world.store.proxies, "Aerospike")


@fault("net-broker-reset")
async def broker_reset(world: World) -> str:
    """Reset the connections to RabbitMQ in the middle of a frame, once a second"""
    before = sum(proxy.cuts for proxy in world.broker_proxies)
    for _ in range(max(3, int(8 * world.span))):
        for proxy in world.broker_proxies:
            proxy.cut()
        await asyncio.sleep(1)
    cuts = sum(proxy.cuts for proxy in world.broker_proxies) - before
    require(cuts, "no connection was cut")
    return f"{cuts} connections to RabbitMQ reset in the middle of what they carried"


@fault("net-broker-slow-close")
async def broker_slow_close(world: World) -> str:
    """Close RabbitMQ's end of every connection, and the client's end 5 s later"""
    before = sum(proxy.slow_closes for proxy in world.broker_proxies)
    await asyncio.gather(*[proxy.close_slowly(5) for proxy in world.broker_proxies])
    closed = sum(proxy.slow_closes for proxy in world.broker_proxies) - before
    require(closed, "no connection was open")
    return f"{closed} connections half open for 5 s"
