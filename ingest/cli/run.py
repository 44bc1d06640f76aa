"""`ingest dev`, `ingest serve`, `ingest work`: the commands that run until they are stopped."""

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from ingest import bootstrap, settings
from ingest.backends import broker_backend, require_rabbitmq
from ingest.cli import supervisor
from ingest.cli.dev_key import given_key, stored_key
from ingest.cli.keys import save_key
from ingest.cli.options import AllowActions, metrics_urls
from ingest.cli.webhooks import check_webhook
from ingest.console import ConsoleServer, Events
from ingest.domain.customers import Customer, hash_api_key
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import Broker, Store
from ingest.serving import listen
from ingest.telemetry import logs
from ingest.telemetry.process import MetricsEndpoint, serve_shared
from ingest.telemetry.recent_events import RecentEvents, RecordedBroker
from ingest.telemetry.reports import ProcessReports
from ingest.telemetry.shown_events import ShownBroker

DEV_CUSTOMER = "dev"
DEV_WEBHOOK = "https://example.com/hooks/asg"

Main = Callable[[MetricsEndpoint | None, asyncio.Event], Coroutine[Any, Any, None]]
"""Runs one process until the event is set."""

_log = structlog.get_logger(__name__)

Host = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Address to listen on. [INGEST_HOST, 127.0.0.1]", show_default=False),
]
Port = Annotated[
    int | None,
    typer.Option(metavar="N", help="Port to listen on; 0 takes a free one. [INGEST_PORT, 8080]", show_default=False),
]


def dev(
    port: Port = None,
    host: Host = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The API key to accept. Without it, one is created and kept. Every user of the machine can see it, "
            "for example with `ps`: INGEST_DEV_API_KEY and --api-key-file hide it.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file that contains only the API key to accept.")
    ] = None,
    quota: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="New tasks per month. Without it, unlimited.")
    ] = None,
    webhook: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help=f"A webhook URL to register, repeatable; {DEV_WEBHOOK} always is."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where it stores its files. [INGEST_DATA_DIR, .ingest]", show_default=False),
    ] = None,
    console_port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Port of the console (`ingest console`); a free one if it is taken. [INGEST_CONSOLE_PORT, 8090]",
            show_default=False,
        ),
    ] = None,
    allow_actions: AllowActions = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not print the events.")] = False,
) -> None:
    """Run everything in one process, on SQLite files. It is for a first try and for tests, with one customer, `dev`.

    It prints an API key, a curl line that works, and every event, and serves the console. Ctrl-C stops it; accepted
    tasks are kept.
    """
    current = settings.load(
        data_dir=data_dir,
        host=host,
        port=port,
        console_port=console_port,
        console_allow_actions=allow_actions,
        broker_url="",
        store_url="",
    )
    given = given_key(api_key, api_key_file, current)
    for url in webhook or []:
        check_webhook(url)
    logs.configure(current.log_level, current.log_format, current.dependencies)
    listener = open_listener(current.host, current.port)
    backend = broker_backend(current)
    recent = RecentEvents()
    events = Events(recent, _example(_address(listener, current), '"Authorization: Bearer $API_KEY"'))
    console = ConsoleServer(current, _console_listener(current), metrics_urls(current), backend, events)
    webhooks = frozenset({DEV_WEBHOOK, *(webhook or [])})

    prepared = asyncio.Event()

    async def prepare(store: Store) -> None:
        key = given or stored_key(current.data_dir / "api_key")
        await store.save_customer(Customer(cust_id=DEV_CUSTOMER, monthly_quota=quota, webhooks=webhooks))
        if await store.customer_by_key(hash_api_key(key)) is None:
            await save_key(store, DEV_CUSTOMER, key)
        typer.echo(_welcome(listener, console.url, current, key, quiet=quiet))
        prepared.set()

    async def serve_console(stop: asyncio.Event) -> None:
        await prepared.wait()  # before, it would report missing files
        await console.run(stop)

    endpoint = _metrics_endpoint(current)

    def decorate(broker: Broker, store: Store) -> bootstrap.Adapters:
        return (bootstrap.undecorated if quiet else _show_events)(RecordedBroker(broker, recent), store)

    async def main(stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(serve_console(stop))
            await bootstrap.run_shim_and_worker(
                current, listener, endpoint, stop, prepare, decorate=decorate, backend=backend
            )

    raise typer.Exit(bootstrap.run(main, current.shutdown_deadline))


def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Processes that share the port. [INGEST_WORKERS, 1]", show_default=False),
    ] = None,
) -> None:
    """Serve HTTP: validate, admit and publish submissions to RabbitMQ. On SIGTERM it finishes the work in flight."""
    current = settings.load(host=host, port=port, workers=workers)
    require_rabbitmq(current, "serve")
    logs.configure(current.log_level, current.log_format, current.dependencies)
    listener = open_listener(current.host, current.port)

    raise typer.Exit(_run(current, current.workers, partial(bootstrap.run_shim, current, listener)))


def work(
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Consumer processes. [INGEST_PROCESSES, 1]", show_default=False),
    ] = None,
    prefetch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Single submissions in flight per process. [INGEST_PREFETCH, 1000]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Consume submissions from RabbitMQ, publish acceptance events. On SIGTERM it finishes the work in flight."""
    current = settings.load(processes=processes, prefetch=prefetch)
    require_rabbitmq(current, "work")
    logs.configure(current.log_level, current.log_format, current.dependencies)

    raise typer.Exit(_run(current, current.processes, partial(bootstrap.run_worker, current)))


def _run(
    current: settings.Settings,
    count: int,
    main: Main,
) -> int:
    """Run `main` in `count` processes, and one more that serves their metrics and health."""
    deadline = current.shutdown_deadline
    endpoint = _metrics_endpoint(current)
    if count == 1:
        return bootstrap.run(partial(main, endpoint), deadline)
    if endpoint is None or endpoint.listener is None:
        return supervisor.supervise(
            [partial(_run_one, main, None, deadline, number) for number in range(count)], deadline
        )
    shared = ProcessReports()
    jobs = [
        partial(_run_one, main, MetricsEndpoint(process=str(number), shared=shared), deadline, number)
        for number in range(count)
    ]
    companion = partial(bootstrap.run, partial(serve_shared, shared, endpoint.listener, count), deadline)
    try:
        return supervisor.supervise(jobs, deadline, companion, lambda number: shared.forget(str(number)))
    finally:
        shared.remove()


def _run_one(main: Main, endpoint: MetricsEndpoint | None, deadline: float, number: int) -> int:
    """Run one of several processes; its log lines have its number."""
    structlog.contextvars.bind_contextvars(process=str(number))
    return bootstrap.run(partial(main, endpoint), deadline)


def _metrics_endpoint(current: settings.Settings) -> MetricsEndpoint | None:
    """Where metrics and health are served; None for nowhere."""
    if current.metrics_port is None:
        return None
    options = ("INGEST_METRICS_PORT", "INGEST_METRICS_HOST")
    listener = open_listener(current.metrics_host, current.metrics_port, options)
    _log.info("metrics_listening", host=current.metrics_host, port=listener.getsockname()[1])
    return MetricsEndpoint(listener=listener)


def open_listener(host: str, port: int, options: tuple[str, str] = ("--port", "--host")) -> socket.socket:
    """Open a listening socket. Raises ConfigurationError, which names the options that choose another."""
    try:
        return listen(host, port)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another with {options[0]} or {options[1]}"
        ) from error


def _show_events(broker: Broker, store: Store) -> bootstrap.Adapters:
    """Print the events of a process on standard output."""
    output = logs.Output(sys.stdout)

    def show(line: str) -> None:
        output.write(f"{line}\n")
        output.flush()

    return ShownBroker(broker, show), store


def _console_listener(current: settings.Settings) -> socket.socket:
    try:
        return listen(current.console_host, current.console_port)
    except OSError:  # for example another `ingest dev`; the console is not worth a failure
        options = ("--console-port", "INGEST_CONSOLE_HOST")
        return open_listener(current.console_host, 0, options)


def _welcome(
    listener: socket.socket, console_url: str, current: settings.Settings, api_key: str, *, quiet: bool
) -> str:
    at = _address(listener, current)
    example = _example(at, f"'Authorization: Bearer {api_key}'", ', "idempotency_key": "order-10042-line-3"')
    return f"""
ingest dev is ready at {at} (API: {at}/docs, console: {console_url}, files: {current.data_dir})

API key: {api_key}

Try it:

{example}

{"" if quiet else "Every event is printed below. "}Ctrl-C stops it."""


def _address(listener: socket.socket, current: settings.Settings) -> str:
    """Return the URL at which a client of this machine reaches the API."""
    host = "127.0.0.1" if current.host in ("0.0.0.0", "::") else current.host  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _example(at: str, authorization: str, members: str = "") -> str:
    """Return a curl line that submits a task.

    Args:
        at: the URL of the API.
        authorization: the header, quoted for a shell.
        members: further members of the task, as JSON that begins with a comma.
    """
    body = (
        '{"type": "text_classification", "data_url": "https://cdn.example.com/doc.txt", "label_spec": '
        '{"question": "Document category?", "options": ["invoice", "receipt", "other"]}, '
        f'"consensus_threshold": 3{members}}}'
    )
    return f"curl -sS -X POST {at}/v1/tasks -H {authorization} -H 'Content-Type: application/json' -d '{body}'"
