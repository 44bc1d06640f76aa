"""The one place that picks RabbitMQ or embedded, Aerospike or SQLite, and wires what runs."""

import asyncio
import gc
import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
import uvloop

from ingest.backends import open_broker, open_store
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.ports import Broker, Store
from ingest.domain.topology import INGEST_BATCHES, INGEST_TASKS
from ingest.settings import Settings
from ingest.shim import Shim, shim_server
from ingest.telemetry.process import MetricsEndpoint, Telemetry
from ingest.worker import Worker

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0

Adapters = tuple[Broker, Store]
Adapt = Callable[[Broker, Store], Adapters]
"""Wraps the adapters that the settings name, for whoever wants to see, or to disturb, what goes through them."""

_log = structlog.get_logger(__name__)


def as_they_are(broker: Broker, store: Store) -> Adapters:
    """The default: nothing around the adapters."""
    return broker, store


async def shim(
    settings: Settings,
    listener: socket.socket,
    place: MetricsEndpoint | None,
    stop: asyncio.Event,
    *,
    adapt: Adapt = as_they_are,
) -> None:
    """Serve HTTP until `stop`."""
    telemetry = _telemetry(settings, "ingest serve", place)
    async with _adapters(settings, "ingest serve", telemetry, adapt) as (broker, store):
        await _serve(settings, broker, store, listener, telemetry, stop)


async def worker(
    settings: Settings, place: MetricsEndpoint | None, stop: asyncio.Event, *, adapt: Adapt = as_they_are
) -> None:
    """Consume until `stop`."""
    telemetry = _telemetry(settings, "ingest work", place)
    async with _adapters(settings, "ingest work", telemetry, adapt) as (broker, store):
        await _work(settings, broker, store, telemetry, stop)


async def both(
    settings: Settings,
    listener: socket.socket,
    place: MetricsEndpoint | None,
    stop: asyncio.Event,
    prepare: Callable[[Store], Awaitable[None]],
) -> None:
    """Shim and worker in one process; the worker stops last, so that it sees what the shim has taken."""
    telemetry = _telemetry(settings, "ingest dev", place)
    async with _adapters(settings, "ingest dev", telemetry) as (broker, store):
        await prepare(store)
        served = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(_work(settings, broker, store, telemetry, served))
            await _serve(settings, broker, store, listener, telemetry, stop)
            served.set()


def run(main: Callable[[asyncio.Event], Awaitable[None]], deadline: float) -> int:
    """Run until SIGTERM or SIGINT, then let it finish within `deadline` seconds. Returns the exit code."""
    # What is loaded by now stays; what a cohort makes has no cycles and is freed by count. The collector would go
    # through thousands of live deliveries again and again for nothing.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_signal(main, deadline))


async def _until_signal(main: Callable[[asyncio.Event], Awaitable[None]], deadline: float) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running = asyncio.ensure_future(main(stop))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    done, _ = await asyncio.wait([running], timeout=deadline)
    if not done:
        _log.error(
            "shutdown_deadline_exceeded", seconds=deadline, consequence="unacknowledged messages will be redelivered"
        )
        running.cancel()
        await asyncio.wait([running], timeout=5)
        return 1
    try:
        running.result()
    except BaseExceptionGroup as group:
        raise _first(group) from group
    return 0


def _first(error: BaseException) -> BaseException:
    """What task groups have wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _telemetry(settings: Settings, role: str, place: MetricsEndpoint | None) -> Telemetry:
    """Also names the process in its log lines. Raises ConfigurationError."""
    structlog.contextvars.bind_contextvars(role=role.removeprefix("ingest "))
    if place is not None and place.shared is not None:
        structlog.contextvars.bind_contextvars(process=place.process)
    tracing = None
    if settings.tracing:
        try:
            # Only here: who has no traces needs no OpenTelemetry.
            from ingest.telemetry.otel import open_telemetry
        except ImportError as error:
            raise ConfigurationError(
                f"INGEST_TRACING needs OpenTelemetry: pip install 'asg-ingest[otel]' ({error})"
            ) from error
        tracing = open_telemetry(role)
    return Telemetry(place, settings.watchdog, tracing)


@asynccontextmanager
async def _adapters(
    settings: Settings, purpose: str, telemetry: Telemetry, adapt: Adapt = as_they_are
) -> AsyncIterator[Adapters]:
    async with AsyncExitStack() as stack:
        plain_broker = await open_broker(settings, purpose)
        stack.push_async_callback(plain_broker.close)
        plain_store = await open_store(settings)
        stack.push_async_callback(plain_store.close)
        adapted_broker, adapted_store = adapt(plain_broker, plain_store)
        system = "rabbitmq" if isinstance(plain_broker, RabbitBroker) else "ingest.embedded"
        broker, store = telemetry.broker(adapted_broker, system), telemetry.store(adapted_store)
        await stack.enter_async_context(telemetry.running())
        async with asyncio.TaskGroup() as group:
            declaring = group.create_task(_declare(broker))
            yield broker, store
            declaring.cancel()


async def _declare(broker: Broker) -> None:
    """Make the topology exist, as soon as the broker is there."""
    pause = _FIRST_PAUSE
    while True:
        try:
            await broker.declare()
        except BrokerUnavailable as error:
            _log.warning("topology_declaration_failed", error=str(error), seconds=pause)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            return


async def _serve(
    settings: Settings,
    broker: Broker,
    store: Store,
    listener: socket.socket,
    telemetry: Telemetry,
    stop: asyncio.Event,
) -> None:
    publisher = await broker.publisher()
    app = Shim(
        store=store,
        publisher=publisher,
        admission=telemetry.admission(store, settings.lease),
        deadline=settings.request_deadline,
        meter=telemetry.meter,
    )
    server = shim_server(telemetry.app(app), settings.shutdown_deadline)

    async def stop_in_time() -> None:
        await stop.wait()
        server.should_exit = True

    _log.info("serving", port=listener.getsockname()[1])
    stopper = asyncio.create_task(stop_in_time())
    try:
        await server.serve(sockets=[listener])
        await app.drain()
    finally:
        stopper.cancel()
        await publisher.close()


async def _work(settings: Settings, broker: Broker, store: Store, telemetry: Telemetry, stop: asyncio.Event) -> None:
    own = frozenset({broker.user} if broker.user else ())
    working = Worker(
        store=store,
        broker=broker,
        admission=telemetry.admission(store, settings.lease),
        trusted_users=settings.trusted_users or own,
        prefetch={INGEST_TASKS: settings.prefetch, INGEST_BATCHES: settings.prefetch_batches},
        meter=telemetry.meter,
        outage_hold=settings.outage_hold,
    )
    telemetry.breaker_open = lambda: working.breaker.is_open

    async def stop_in_time() -> None:
        await stop.wait()
        working.stop()

    stopper = asyncio.create_task(stop_in_time())
    try:
        await working.run()
    finally:
        stopper.cancel()
