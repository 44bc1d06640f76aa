"""`ingest producer`: direct producers that have queues of their own."""

import typer

from ingest import settings
from ingest.backends import require_rabbitmq
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.provisioning import (
    bind_own_queues,
    declare_own_queues,
    delete_own_queues,
    drain_own_queues,
    existing_own_queues,
)
from ingest.cli.options import Json
from ingest.cli.registry import Cust, existing_customer, print_json, with_store
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import Store

app = typer.Typer(
    help="Direct producers with queues of their own, so that they do not wait for one another.", no_args_is_help=True
)


@app.command("add")
def producer_add(cust: Cust) -> None:
    """Give a direct producer queues of its own. Needs INGEST_MANAGEMENT_URL.

    The customer must exist; its weight is that of its queues (`ingest customer set CUST --weight`). Workers consume the
    queues within 5 seconds. Its AMQP user is created as before (deploy/README.md, Users).
    """
    backend = require_rabbitmq(settings.load(), "producer add")
    management = _management(backend.management)
    broker = backend.new_broker("ingest producer")

    async def add(store: Store) -> float:
        customer = await existing_customer(store, cust)
        # In this order, so that nothing waits in a queue that no worker consumes if the command is interrupted.
        await declare_own_queues(broker, management, cust)
        await store.add_producer(cust)
        await bind_own_queues(broker, cust)
        return customer.weight

    typer.echo(f"{cust} has queues of its own, with weight {with_store(add):g}")


@app.command("remove")
def producer_remove(cust: Cust) -> None:
    """Let a direct producer use the shared queues again. Needs INGEST_MANAGEMENT_URL, and workers that run.

    Its own queues are deleted once they are empty. If they are not within ten minutes, run the command again.
    """
    backend = require_rabbitmq(settings.load(), "producer remove")
    management = _management(backend.management)
    broker = backend.new_broker("ingest producer")

    async def remove(store: Store) -> None:
        if cust not in await store.producers() and not await existing_own_queues(broker, cust):
            raise ConfigurationError(f"{cust} has no queues of its own: see `ingest producer list`")
        await drain_own_queues(broker, management, cust)
        await store.remove_producer(cust)
        await delete_own_queues(broker, cust)

    typer.echo(f"waiting until the queues of {cust} are empty ...", err=True)
    with_store(remove)
    typer.echo(f"{cust} uses the shared queues")


@app.command("list")
def producer_list(json: Json = False) -> None:
    """List the direct producers that have queues of their own."""
    weights = with_store(lambda store: store.producers())
    if json:
        print_json([{"cust_id": cust_id, "weight": weight} for cust_id, weight in weights.items()])
        return
    for cust_id, weight in weights.items():
        typer.echo(f"{cust_id}  weight {weight:g}")
    if not weights:
        typer.echo("no direct producer has queues of its own: add one with `ingest producer add CUST`")


def _management(management: Management | None) -> Management:
    if management is None:
        raise ConfigurationError("`ingest producer` needs INGEST_MANAGEMENT_URL=http://user:password@host:15672")
    return management
