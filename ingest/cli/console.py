"""`ingest console`: pages for operators in a browser."""

from typing import Annotated

import typer

from ingest import bootstrap, settings
from ingest.cli.options import AllowActions, Scrape, metrics_urls
from ingest.cli.run import open_listener
from ingest.console import ConsoleServer
from ingest.telemetry import logs


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
    allow_actions: AllowActions = None,
    scrape: Scrape = None,
) -> None:
    """Serve pages for operators: the state of the service, its dead letters, its customers, and where a task is.

    They only read, unless --allow-actions is given: then dead letters can be redriven, exported and deleted. Each
    action is logged with the user.

    On 127.0.0.1 every user of the machine can open them, and with --allow-actions also delete dead letters and export
    their secrets; INGEST_CONSOLE_TOKEN, which browsers ask for as a password, prevents that.
    On another address, set it or, behind a proxy that authenticates users, INGEST_CONSOLE_USER_HEADER, and use TLS in
    front of it. Settings are those of `ingest status` and `ingest find`.
    """
    current = settings.load(console_host=host, console_port=port, console_allow_actions=allow_actions)
    logs.configure(current.log_level, current.log_format, current.dependencies)
    bootstrap.warn_of_unknown_settings()
    server = ConsoleServer(
        current,
        open_listener(current.console_host, current.console_port),
        scrape or metrics_urls(current),
    )
    typer.echo(f"ingest console is ready at {server.url}")
    raise typer.Exit(bootstrap.run(server.run, current.shutdown_deadline, seldom_collects=False))
