"""The command line: `ingest`."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from ingest import __version__
from ingest.cli import (
    console,
    customers,
    dlq,
    doctor,
    documents,
    find,
    keys,
    producers,
    run,
    settings_list,
    status,
    topology,
    webhooks,
)
from ingest.cli.exits import exit_code


class _CommandsFirst(TyperGroup):
    """Lists the commands before the options in the help."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        super().format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """They have been written."""


app = typer.Typer(
    name="ingest",
    cls=_CommandsFirst,
    help="Ingestion of human-labelling tasks: HTTP and AMQP in, acceptance events out.\n\n"
    "Start with `ingest dev`: everything in one process, no servers needed. Settings are environment variables: "
    "`ingest settings` lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run.dev)
app.command()(run.serve)
app.command()(run.work)
app.add_typer(topology.app, name="topology")
app.add_typer(customers.app, name="customer")
app.add_typer(keys.app, name="key")
app.add_typer(webhooks.app, name="webhook")
app.add_typer(producers.app, name="producer")
app.add_typer(dlq.app, name="dlq")
app.command()(find.find)
app.command()(console.console)
app.command()(doctor.doctor)
app.command()(status.status)
app.command("settings")(settings_list.settings_)
app.command()(documents.openapi)
app.command()(documents.asyncapi)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it.")) -> None:
    """Options of `ingest` itself."""


def main() -> None:
    """Run the command line. An error that a person can correct is one line, without a traceback.

    Exit codes: 0 success; 1 a dependency is unavailable, or a check found a problem; 2 wrong usage or configuration;
    130 Ctrl-C.
    """
    sys.exit(exit_code(app))
