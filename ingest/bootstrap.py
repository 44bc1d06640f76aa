"""Starts and stops what a process runs: the shim, the worker, or both."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
import uvloop

from ingest.backends import BrokerBackend, broker_backend, store_backend
from ingest.broker.bundles.broker import BundlingBroker
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from ingest.domain.ports import Broker, Store
from ingest.domain.topology import BULK_QUEUES
from ingest.serving import raise_file_limit
from ingest.settings import Settings, unknown_variables
from ingest.shim import Shim, shim_server
from ingest.telemetry.process import MetricsEndpoint, Telemetry
from ingest.waiting import Backoff, raise_if_cancelled, waiting_for
from ingest.worker import Worker

_DECLARE_PAUSES: Final = (0.5, 10.0)
"""First and longest pause before the topology is declared again, in seconds."""

Adapters = tuple[Broker, Store]
Decorate = Callable[[Broker, Store], Adapters]
"""Wraps the adapters of a process, to observe or disturb what passes through them."""

_log = structlog.get_logger(__name__)


def undecorated(broker: Broker, store: Store) -> Adapters:
    """Return the adapters themselves: the default of `decorate`."""
    return broker, store


async def run_shim(
    settings: Settings,
    listener: socket.socket,
    endpoint: MetricsEndpoint | None,
    stop: asyncio.Event,
    *,
    decorate: Decorate = undecorated,
) -> None:
    """Serve HTTP until `stop` is set.

    Args:
        settings: the settings.
        listener: an open listening socket.
        endpoint: where metrics and health are served; None for nowhere.
        stop: ends the process gracefully.
        decorate: wraps the adapters.
    """
    telemetry = _telemetry(settings, "ingest serve", endpoint)
    async with _adapters(settings, "ingest serve", telemetry, decorate) as (broker, store, declared):
        await _serve(settings, broker, store, declared, listener, telemetry, stop)


async def run_worker(
    settings: Settings,
    endpoint: MetricsEndpoint | None,
    stop: asyncio.Event,
    *,
    decorate: Decorate = undecorated,
) -> None:
    """Consume until `stop` is set. Arguments as `run_shim`."""
    telemetry = _telemetry(settings, "ingest work", endpoint)
    async with _adapters(settings, "ingest work", telemetry, decorate) as (broker, store, _):
        await _work(settings, broker, store, telemetry, stop)


async def run_shim_and_worker(
    settings: Settings,
    listener: socket.socket,
    endpoint: MetricsEndpoint | None,
    stop: asyncio.Event,
    prepare: Callable[[Store], Awaitable[None]],
    *,
    decorate: Decorate = undecorated,
    backend: BrokerBackend | None = None,
) -> None:
    """Run the shim and the worker in one process; the worker stops last, so that it finishes what the shim accepted.

    `prepare` is called with the store before either starts; `backend` opens the broker, by default one of the
    settings. The other arguments are as for `run_shim`.
    """
    telemetry = _telemetry(settings, "ingest dev", endpoint)
    async with _adapters(settings, "ingest dev", telemetry, decorate, backend) as (broker, store, declared):
        await prepare(store)
        shim_stopped = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(_work(settings, broker, store, telemetry, shim_stopped))
            await _serve(settings, broker, store, declared, listener, telemetry, stop)
            shim_stopped.set()


def warn_of_unknown_settings() -> None:
    """Log variables that look like settings and are none: one may be misspelt."""
    for name, closest in unknown_variables(os.environ).items():
        _log.warning("unknown_setting", name=name, closest=closest or None)


def tune_garbage_collector() -> None:
    """Collect garbage seldom.

    Everything loaded so far stays, and a micro-batch creates no reference cycles. So the collector would examine
    thousands of live deliveries again and again without finding anything.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def run(main: Callable[[asyncio.Event], Awaitable[None]], deadline: float, *, seldom_collects: bool = True) -> int:
    """Run until SIGTERM or SIGINT, then set the event and wait at most `deadline` seconds. Return the exit code.

    `seldom_collects`: whether to `tune_garbage_collector`. It is for the shim and the worker; the console makes
    reference cycles, which would take memory until they are collected.
    """
    if seldom_collects:
        tune_garbage_collector()
    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_until_signal(main, deadline))


async def _run_until_signal(main: Callable[[asyncio.Event], Awaitable[None]], deadline: float) -> int:
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
        consequence = "requests in progress get no answer; unacknowledged messages will be redelivered"
        _log.error("shutdown_deadline_exceeded", seconds=deadline, consequence=consequence)
        running.cancel()
        await asyncio.wait([running], timeout=5)
        return 1
    try:
        running.result()
    except BaseExceptionGroup as group:
        raise _first(group) from group
    return 0


def _first(error: BaseException) -> BaseException:
    """Return the first error inside the groups that task groups raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _telemetry(settings: Settings, role: str, endpoint: MetricsEndpoint | None) -> Telemetry:
    """Set up the telemetry of this process and add its role to its log lines. Raises ConfigurationError."""
    structlog.contextvars.bind_contextvars(role=role.removeprefix("ingest "))
    tracing = None
    if settings.tracing:
        try:
            # Imported here, because OpenTelemetry is an optional dependency.
            from ingest.telemetry.otel import open_telemetry
        except ImportError as error:
            raise ConfigurationError(
                f"INGEST_TRACING needs OpenTelemetry: pip install 'asg-ingest[otel]' ({error})"
            ) from error
        tracing = open_telemetry(role)
    return Telemetry(endpoint, settings.watchdog, tracing)


@asynccontextmanager
async def _adapters(
    settings: Settings,
    purpose: str,
    telemetry: Telemetry,
    decorate: Decorate = undecorated,
    backend: BrokerBackend | None = None,
) -> AsyncIterator[tuple[Broker, Store, asyncio.Event]]:
    """Yield the adapters of a process, and an event that is set when the topology is declared."""
    backend = backend or broker_backend(settings)
    stored = store_backend(settings)
    warn_of_unknown_settings()
    async with AsyncExitStack() as stack:
        plain_broker = BundlingBroker(await backend.open(purpose), backend.trusted_users)
        stack.push_async_callback(plain_broker.close)
        plain_store = await stored.open()
        stack.push_async_callback(plain_store.close)
        decorated_broker, decorated_store = decorate(plain_broker, plain_store)
        broker, store = telemetry.broker(decorated_broker, backend.system), telemetry.store(decorated_store)
        await stack.enter_async_context(telemetry.running())
        async with asyncio.TaskGroup() as group:
            declared = asyncio.Event()
            declaring = group.create_task(_declare(broker, declared))
            yield broker, store, declared
            declaring.cancel()


async def _declare(broker: Broker, declared: asyncio.Event) -> None:
    """Declare the topology as soon as the broker is available, then set the event."""
    backoff = Backoff(*_DECLARE_PAUSES)
    while True:
        try:
            await broker.declare()
        except BrokerUnavailable as error:
            raise_if_cancelled()
            _log.warning("broker_unavailable", error=str(error))
            await asyncio.sleep(backoff.next())
        else:
            declared.set()
            return


async def _serve(
    settings: Settings,
    broker: Broker,
    store: Store,
    declared: asyncio.Event,
    listener: socket.socket,
    telemetry: Telemetry,
    stop: asyncio.Event,
) -> None:
    publisher = await broker.publisher()

    async def broker_ready() -> None:
        if not declared.is_set():  # on a new broker, a submission would have no queue
            raise BrokerUnavailable("the topology is not declared yet")
        await publisher.ready()

    layout = broker_backend(settings).layout
    app = Shim(
        store=store,
        publisher=publisher,
        admission=telemetry.admission(store, settings.lease),
        deadline=settings.request_deadline,
        meter=telemetry.meter,
        layout=layout,
        broker_ready=broker_ready,
    )
    server = shim_server(telemetry.app(app), settings.shutdown_deadline)

    async def stop_server() -> None:
        await stop.wait()
        server.should_exit = True

    _log.info("serving", port=listener.getsockname()[1], **waiting_for(broker.connections()))
    stopper = asyncio.create_task(stop_server())
    try:
        await server.serve(sockets=[listener])
        await app.drain()
    finally:
        stopper.cancel()
        await publisher.close()


async def _work(settings: Settings, broker: Broker, store: Store, telemetry: Telemetry, stop: asyncio.Event) -> None:
    backend = broker_backend(settings)
    worker = Worker(
        store=store,
        broker=broker,
        admission=telemetry.admission(store, settings.lease),
        trusted_users=backend.trusted_users,
        layout=backend.layout,
        prefetch=dict.fromkeys(backend.layout.ingest_queues, settings.prefetch)
        | dict.fromkeys(BULK_QUEUES, settings.prefetch_batches),
        meter=telemetry.meter,
        outage_hold=settings.outage_hold,
    )
    telemetry.breaker_open = lambda: worker.breaker.is_open
    telemetry.worker_problems = lambda: worker.problems

    async def stop_worker() -> None:
        await stop.wait()
        worker.stop()

    stopper = asyncio.create_task(stop_worker())
    try:
        await worker.run()
    finally:
        stopper.cancel()
