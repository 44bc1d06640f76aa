"""The command line: `ingest`."""

import sys

import typer

from ingest import __version__, settings
from ingest.cli import customers, dlq, doctor, documents, keys, run, status, topology, webhooks
from ingest.cli.exits import exit_code


def _help() -> str:
    rows = "\n\n".join(
        f"{name}{f' [{default}]' if default else ''}: {text}" for name, default, text in settings.described()
    )
    return f"""Ingestion of human-labelling tasks: HTTP and AMQP in, acceptance events out.

    Start with `ingest dev`: everything in one process, no servers needed.

    Settings (environment variables, [default]):

{rows}
"""


app = typer.Typer(
    name="ingest",
    help=_help(),
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
app.add_typer(dlq.app, name="dlq")
app.command()(doctor.doctor)
app.command()(status.status)
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
