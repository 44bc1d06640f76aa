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
from ingest.console.dead_letters import DeadLetters
from ingest.console.history import History
from ingest.operations.find import Findings
from ingest.operations.find import find as find_submission
from ingest.operations.status import StatusCollector
from ingest.serving import EmbeddedServer
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

    On 127.0.0.1 every user of the machine can read them; INGEST_CONSOLE_TOKEN, which browsers ask for as a password,
    prevents that. On another address, set it or, behind a proxy that authenticates users, INGEST_CONSOLE_USER_HEADER,
    and use TLS in front of it. Settings are those of `ingest status` and `ingest find`.
    """
    current = settings.load(console_host=host, console_port=port)
    logs.configure(current.log_level, current.log_format, current.dependencies)
    bootstrap.warn_of_unknown_settings()
    token = current.console_token.get_secret_value()
    access = Access(current.console_host, token, current.console_user_header)
    store, broker = store_backend(current), broker_backend(current)
    collector = StatusCollector(current, scrape or metrics_urls(current))

    listener = open_listener(current.console_host, current.console_port)
    address, actual_port = listener.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address
    typer.echo(f"ingest console is ready at http://{name}:{actual_port}")

    async def main(stop: asyncio.Event) -> None:
        letters = DeadLetters(broker.open_dead_letters)

        async def find(sought: str, customer: str | None) -> Findings:
            return await find_submission(sought, store.open_to_read, letters.search, customer)

        history = History(collector.collect)
        server = shim_server(Console(access, history, find, letters), _GRACE)
        others = [asyncio.create_task(history.run()), asyncio.create_task(_stop(server, stop))]
        try:
            await server.serve([listener])
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await letters.close()
            await collector.close()

    raise typer.Exit(bootstrap.run(main, current.shutdown_deadline))


async def _stop(server: EmbeddedServer, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True
