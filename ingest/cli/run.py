"""`ingest dev`, `ingest serve`, `ingest work`: what runs until it is stopped."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from ingest import backends, bootstrap, settings
from ingest.cli import supervisor
from ingest.cli.customers import check_webhook, save_key
from ingest.domain.customers import Customer, hash_api_key, new_api_key
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import Store
from ingest.serving import listen
from ingest.telemetry import logs
from ingest.telemetry.process import MetricsEndpoint, serve_shared
from ingest.telemetry.shared import ProcessReports

DEV_CUSTOMER = "dev"
DEV_WEBHOOK = "https://example.com/hooks/asg"

_log = structlog.get_logger(__name__)

Host = Annotated[str | None, typer.Option(help="Address to listen on. [INGEST_HOST, 127.0.0.1]", show_default=False)]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on; 0 takes a free one. [INGEST_PORT, 8080]", show_default=False)
]


def dev(
    port: Port = None,
    host: Host = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The API key to accept; without it one is made and kept.")
    ] = None,
    quota: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="New tasks a month. Without it: unlimited.")
    ] = None,
    webhook: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help=f"A webhook URL to register, repeatable; {DEV_WEBHOOK} always is."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where it keeps its files. [INGEST_DATA_DIR, .ingest]", show_default=False)
    ] = None,
) -> None:
    """Everything in one process on SQLite files, with one customer `dev`: for trying out and for tests.

    Prints an API key and a curl line that works. Ctrl-C stops it; what was accepted is kept.
    """
    loaded = settings.load(
        data_dir=data_dir,
        host=host,
        port=port,
        broker_url="",
        store_url="",
        log_level=os.environ.get("INGEST_LOG_LEVEL", "debug"),
    )
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key):
        raise ConfigurationError("--api-key must be printable ASCII without spaces")
    for url in webhook or []:
        check_webhook(url)
    logs.configure(loaded.log_level, loaded.log_format)
    listener = _listen(loaded.host, loaded.port)
    webhooks = frozenset({DEV_WEBHOOK, *(webhook or [])})

    async def prepare(store: Store) -> None:
        accepted = api_key or _kept_key(loaded.data_dir / "api_key")
        await store.save_customer(Customer(cust_id=DEV_CUSTOMER, monthly_quota=quota, webhooks=webhooks))
        if await store.customer_by_key(hash_api_key(accepted)) is None:
            await save_key(store, DEV_CUSTOMER, accepted)
        typer.echo(_welcome(listener, loaded, accepted))

    place = _place(loaded)

    async def main(stop: asyncio.Event) -> None:
        await bootstrap.both(loaded, listener, place, stop, prepare)

    raise typer.Exit(bootstrap.run(main, loaded.shutdown_deadline))


def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the port. [INGEST_WORKERS, 1]", show_default=False)
    ] = None,
) -> None:
    """Serve HTTP: validate, admit and publish submissions to RabbitMQ. SIGTERM finishes what is in flight."""
    loaded = settings.load(host=host, port=port, workers=workers)
    backends.need_rabbitmq(loaded, "serve")
    logs.configure(loaded.log_level, loaded.log_format)
    listener = _listen(loaded.host, loaded.port)

    raise typer.Exit(_run(loaded, loaded.workers, partial(bootstrap.shim, loaded, listener)))


def work(
    processes: Annotated[
        int | None, typer.Option(min=1, help="Consumer processes. [INGEST_PROCESSES, 1]", show_default=False)
    ] = None,
    prefetch: Annotated[
        int | None,
        typer.Option(min=1, help="Single submissions in flight, each. [INGEST_PREFETCH, 1000]", show_default=False),
    ] = None,
) -> None:
    """Consume submissions from RabbitMQ, emit acceptance events. SIGTERM finishes what is in flight."""
    loaded = settings.load(processes=processes, prefetch=prefetch)
    backends.need_rabbitmq(loaded, "work")
    logs.configure(loaded.log_level, loaded.log_format)

    raise typer.Exit(_run(loaded, loaded.processes, partial(bootstrap.worker, loaded)))


def _run(
    loaded: settings.Settings,
    count: int,
    main: Callable[[MetricsEndpoint | None, asyncio.Event], Coroutine[Any, Any, None]],
) -> int:
    """Run `main` in `count` processes, and what shows their metrics and health."""
    deadline = loaded.shutdown_deadline
    place = _place(loaded)
    if count == 1 or place is None or place.listener is None:
        return supervisor.supervise([lambda: bootstrap.run(partial(main, place), deadline)] * count, deadline)
    shared = ProcessReports()
    jobs = [
        partial(bootstrap.run, partial(main, MetricsEndpoint(process=str(number), shared=shared)), deadline)
        for number in range(count)
    ]
    beside = partial(bootstrap.run, partial(serve_shared, shared, place.listener, count), deadline)
    try:
        return supervisor.supervise(jobs, deadline, beside, lambda number: shared.forget(str(number)))
    finally:
        shared.remove()


def _place(loaded: settings.Settings) -> MetricsEndpoint | None:
    """Where metrics and health are shown, if anywhere."""
    if loaded.metrics_port is None:
        return None
    names = ("INGEST_METRICS_PORT", "INGEST_METRICS_HOST")
    listener = _listen(loaded.metrics_host, loaded.metrics_port, names)
    _log.info("metrics_started", port=listener.getsockname()[1])
    return MetricsEndpoint(listener=listener)


def _listen(host: str, port: int, names: tuple[str, str] = ("--port", "--host")) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another with {names[0]} or {names[1]}"
        ) from error


def _kept_key(path: Path) -> str:
    """The key of an earlier start, or a new one, readable for its owner only."""
    if path.exists():
        return path.read_text().strip()
    fresh = new_api_key()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(fresh + "\n")
    return fresh


def _welcome(listener: socket.socket, loaded: settings.Settings, api_key: str) -> str:
    host = "127.0.0.1" if loaded.host in ("0.0.0.0", "::") else loaded.host  # noqa: S104 - compared, not bound
    at = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    body = (
        '{"type": "text_classification", "data_url": "https://cdn.example.com/doc.txt", "label_spec": '
        '{"question": "Document category?", "options": ["invoice", "receipt", "other"]}, '
        '"consensus_threshold": 3, "idempotency_key": "order-10042-line-3"}'
    )
    return f"""
ingest dev is ready at {at} (API: {at}/docs, files: {loaded.data_dir})

API key: {api_key}

Try it:

curl -sS -X POST {at}/v1/tasks -H 'Authorization: Bearer {api_key}' -H 'Content-Type: application/json' -d '{body}'

Every accepted task is logged below. Ctrl-C stops it."""
