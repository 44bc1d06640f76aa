"""`ingest status`: the state of the system, live."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from ingest import settings
from ingest.cli.exits import writing_to
from ingest.cli.options import Json, Scrape, metrics_urls
from ingest.cli.status_view import Cropped, render
from ingest.domain.display import json_text, redacted
from ingest.operations.status import StatusCollector
from ingest.telemetry import logs


def status(
    once: Annotated[bool, typer.Option("--once", help="Print the state once and exit.")] = False,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.5, help="Seconds between two updates.")] = 2.0,
    scrape: Scrape = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Print once, and draw it into a file.")] = None,
    json: Json = False,
) -> None:
    """Show queues, dead letters by reason, processes and store, live. Ctrl-C ends it.

    Problems come first. Rates, unacknowledged messages and alarms need INGEST_MANAGEMENT_URL. Readiness and circuit
    breakers come from the processes' own ports (INGEST_METRICS_PORT); their tasks/s are known from the second update
    on. What is unknown or does not apply is shown as -.
    `oldest` is the age of the first message. RabbitMQ does not report it for quorum queues (seen on 3.10 and 4.3); that
    of ingest.dead comes from the dead letters, which are read if they are at most 2,000.

    Exit code with --once or --json: 0, or 1 if the broker or the store has a problem.
    """
    current = settings.load()
    logs.configure("error", current.log_format)
    collector = StatusCollector(current, scrape or metrics_urls(current))
    if not (once or json or svg) and sys.stdout.isatty():
        asyncio.run(_show_live(collector, interval))
        return
    overview = asyncio.run(collector.collect_once())
    if json:
        typer.echo(json_text(redacted(msgspec.to_builtins(overview))))
    else:
        console = Console(record=svg is not None, width=110 if svg else None)
        # Programs that read the output get each problem as one line.
        console.print(render(overview), soft_wrap=svg is None and not console.is_terminal)
        if svg is not None:
            with writing_to(str(svg)):
                console.save_svg(str(svg), title="ingest status")
    if overview.broker.problems or overview.store.problems:
        raise typer.Exit(1)


async def _show_live(collector: StatusCollector, interval: float) -> None:
    with Live(console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(Cropped(render(await collector.collect())), refresh=True)
            await asyncio.sleep(interval)
