"""`ingest topology`: exchanges, queues, bindings and policies on RabbitMQ."""

import asyncio

import msgspec
import typer

from ingest import backends, settings
from ingest.backends import management, vhost
from ingest.broker.rabbitmq.management import definitions, rabbitmqctl_lines
from ingest.domain.errors import ConfigurationError

app = typer.Typer(help="The AMQP topology: make it, check it, export it.", no_args_is_help=True)


@app.command()
def apply() -> None:
    """Declare exchanges, queues and bindings, and set the policies.

    Policies need INGEST_MANAGEMENT_URL; without it the rabbitmqctl lines that set them are printed.
    """
    loaded = _rabbitmq("topology apply")

    async def declare() -> None:
        broker = await backends.open_broker(loaded)
        await broker.declare()
        await broker.close()

    asyncio.run(declare())
    typer.echo("exchanges, queues and bindings are there")
    if api := management(loaded):
        api.apply_policies()
        typer.echo("policies are set")
        return
    typer.echo("INGEST_MANAGEMENT_URL is not set; run these on a broker host to set the policies:", err=True)
    for line in rabbitmqctl_lines(vhost(loaded)):
        typer.echo(line)


@app.command()
def check() -> None:
    """Compare the broker with the topology; exit code 1 where they differ."""
    loaded = _rabbitmq("topology check")
    api = management(loaded)
    if api is None:
        raise ConfigurationError("`ingest topology check` needs INGEST_MANAGEMENT_URL=http://user:password@host:15672")
    differences = api.differences()
    for sentence in differences:
        typer.echo(sentence)
    if differences:
        raise typer.Exit(1)
    typer.echo("all as it should be")


@app.command()
def export() -> None:
    """Print the topology as a RabbitMQ definitions file (JSON)."""
    typer.echo(msgspec.json.format(msgspec.json.encode(definitions())).decode())


def _rabbitmq(command: str) -> settings.Settings:
    loaded = settings.load()
    backends.need_rabbitmq(loaded, command)
    return loaded
