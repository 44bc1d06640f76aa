"""`ingest console`: pages for operators in a browser."""

import asyncio
from typing import Annotated

import typer

from ingest import bootstrap, settings
from ingest.backends import broker_backend, store_backend
from ingest.cli.options import Scrape, metrics_urls
from ingest.cli.run import open_listener
from ingest.console import Console
from ingest.console.access import Access
from ingest.console.history import History
from ingest.operations.find import Findings
from ingest.operations.find import find as search
from ingest.operations.status import StatusCollector
from ingest.shim.http.server import shim_server
from ingest.telemetry import logs

_GRACE = 5.0
"""Seconds that requests may continue after SIGTERM."""


def console(
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on. [INGEST_CONSOLE_HOST, 127.0.0.1]", show_default=False
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Port to listen on; 0 takes a free one. [INGEST_CONSOLE_PORT, 8090]", show_default=False
        ),
    ] = None,
    scrape: Scrape = None,
) -> None:
    """Serve pages for operators: the state of the service, and where a task is. They only read.

    On 127.0.0.1 everybody on the machine may read them. On another address, set INGEST_CONSOLE_TOKEN, which browsers
    ask for as a password, or INGEST_CONSOLE_USER_HEADER behind a proxy that authenticates users; use TLS in front of
    it. Settings are those of `ingest status` and `ingest find`.
    """
    current = settings.load(console_host=host, console_port=port)
    logs.configure(current.log_level, current.log_format, current.dependencies)
    token = current.console_token.get_secret_value()
    access = Access(current.console_host, token, current.console_user_header)
    store, broker = store_backend(current), broker_backend(current)
    collector = StatusCollector(current, scrape or metrics_urls(current))

    async def find(sought: str, customer: str | None) -> Findings:
        return await search(sought, store.open, broker.open_dead_letters, customer)

    listener = open_listener(current.console_host, current.console_port)
    address, actual_port = listener.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address
    typer.echo(f"ingest console is ready at http://{name}:{actual_port}")

    async def main(stop: asyncio.Event) -> None:
        history = History(collector.collect)
        server = shim_server(Console(access, history, find), _GRACE)
        async with asyncio.TaskGroup() as group:
            group.create_task(history.run(stop))
            serving = group.create_task(server.serve([listener]))
            await asyncio.wait([serving, group.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
        await collector.close()

    raise typer.Exit(bootstrap.run(main, current.shutdown_deadline))
