"""`ingest topology`: exchanges, queues, bindings and policies on RabbitMQ."""

import asyncio
from typing import Annotated

import msgspec
import typer

from ingest import settings
from ingest.backends import require_rabbitmq
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management, definitions, rabbitmqctl_lines
from ingest.broker.rabbitmq.provisioning import apply_topology, remove_surplus
from ingest.domain.display import shown
from ingest.domain.errors import ConfigurationError
from ingest.telemetry import logs

app = typer.Typer(help="The AMQP topology: declare it, check it, export it.", no_args_is_help=True)


RemoveSurplus = Annotated[
    bool,
    typer.Option(
        "--remove-surplus",
        help="Delete the queues of the shim beyond INGEST_HTTP_QUEUES and INGEST_HEAVY_QUEUES, once workers have "
        "emptied them. First restart all shims and workers with these numbers.",
    ),
]


@app.command()
def apply(remove: RemoveSurplus = False) -> None:
    """Declare exchanges, queues and bindings, and set the policies.

    Policies need INGEST_MANAGEMENT_URL; without it the rabbitmqctl lines that set them are printed, and no producer can
    have queues of its own (`ingest producer`).
    """
    current = settings.load()
    logs.configure(current.log_level, current.log_format)
    backend = require_rabbitmq(current, "topology apply")

    management = backend.management
    if remove and management is None:
        raise ConfigurationError("--remove-surplus needs INGEST_MANAGEMENT_URL=http://user:password@host:15672")
    broker = backend.new_broker("ingest topology")
    asyncio.run(broker.declare() if management is None else apply_topology(broker, management))
    typer.echo("exchanges, queues and bindings exist")
    if management is not None:
        typer.echo("policies are set")
        asyncio.run(_surplus(broker, management, remove))
        return
    typer.echo("INGEST_MANAGEMENT_URL is not set; run these commands on a broker host to set the policies:", err=True)
    for line in rabbitmqctl_lines(backend.virtual_host):
        typer.echo(line)


async def _surplus(broker: RabbitBroker, management: Management, remove: bool) -> None:
    queues = await asyncio.to_thread(management.surplus_queues)
    names = ", ".join(queues)
    if queues and not remove:
        typer.echo(f"surplus queues: {names}: see --remove-surplus", err=True)
    elif queues:
        typer.echo(f"waiting until workers have emptied and left {names} ...", err=True)
        await remove_surplus(broker, management, queues)
        typer.echo(f"{names} deleted")


@app.command()
def check() -> None:
    """Compare the broker with the topology. Exit code 1 if they differ."""
    management = require_rabbitmq(settings.load(), "topology check").management
    if management is None:
        raise ConfigurationError("`ingest topology check` needs INGEST_MANAGEMENT_URL=http://user:password@host:15672")
    differences = management.differences()
    for sentence in differences:
        typer.echo(shown(sentence))
    if differences:
        raise typer.Exit(1)
    typer.echo("the broker matches the topology")


@app.command()
def export() -> None:
    """Print the topology as a RabbitMQ definitions file (JSON)."""
    typer.echo(msgspec.json.format(msgspec.json.encode(definitions(layout=settings.load().layout))).decode())
