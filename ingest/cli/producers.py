"""`ingest producer`: direct producers, with a RabbitMQ user and queues of their own."""

import asyncio
from typing import Annotated, Any

import typer

from ingest import settings
from ingest.backends import require_rabbitmq
from ingest.broker.rabbitmq.broker import RabbitBroker
from ingest.broker.rabbitmq.management import Management
from ingest.broker.rabbitmq.producer_users import ProducerUsers
from ingest.broker.rabbitmq.provisioning import (
    bind_producer_queues,
    declare_producer_queues,
    delete_feedback_queue,
    delete_own_queues,
    drain_own_queues,
    existing_queues,
)
from ingest.cli.options import Json
from ingest.cli.registry import Cust, existing_customer, print_json, show_fields, with_store
from ingest.domain.display import shown
from ingest.domain.errors import ConfigurationError, IngestError
from ingest.domain.overview import counted
from ingest.domain.ports import Store
from ingest.domain.topology import feedback_queue, own_queues, producer_queues

app = typer.Typer(
    help="Direct producers: a RabbitMQ user, queues of their own so that they do not wait for one another, and a queue "
    "with reports about their rejected and duplicate submissions.",
    no_args_is_help=True,
)

NoUser = Annotated[
    bool, typer.Option("--no-user", help="Create only the queues: RabbitMQ's users are managed elsewhere.")
]
KeepUser = Annotated[
    bool, typer.Option("--keep-user", help="Keep the user; its submissions then go to the shared queues.")
]
CloseConnections = Annotated[
    bool, typer.Option("--close-connections", help="Also close the connections that were opened with the old password.")
]


@app.command("add")
def producer_add(cust: Cust, no_user: NoUser = False, json: Json = False) -> None:
    """Give a customer a RabbitMQ user named after it, queues of its own, and a queue for feedback.

    The password is printed once. Needs INGEST_MANAGEMENT_URL, with a user that has the tag `administrator` unless
    --no-user is set. The customer must exist; its weight is that of its queues (`ingest customer set CUST --weight`).
    Workers consume the queues within 5 seconds. Run it again to repair what is missing: an existing user keeps its
    password.
    """
    broker, management, users = _backend("producer add")
    if not no_user:
        users.exists(cust)  # before anything is created

    async def add(store: Store) -> float:
        customer = await existing_customer(store, cust)
        # In this order, so that nothing waits in a queue that no worker consumes if the command is interrupted.
        await declare_producer_queues(broker, management, cust)
        await store.add_producer(cust)
        await bind_producer_queues(broker, cust)
        return customer.weight

    weight = with_store(add)
    password = None if no_user else users.create(cust)
    fields: dict[str, Any] = {
        "user": cust,
        **({} if password is None else {"password": password}),
        "queues": [queue.name for queue in own_queues(cust)],
        "feedback": feedback_queue(cust).name,
        "weight": weight,
    }
    show_fields(fields, json)
    if password is None and not no_user:
        typer.echo(f"the user existed and keeps its password: see `ingest producer rotate {cust}`", err=True)


@app.command("rotate")
def producer_rotate(cust: Cust, close: CloseConnections = False, json: Json = False) -> None:
    """Give a producer's RabbitMQ user a new password and print it once.

    Needs INGEST_MANAGEMENT_URL with a user that has the tag `administrator`. The old password no longer opens
    connections; those that are open stay, unless --close-connections is set.
    """
    _, _, users = _backend("producer rotate")
    fields: dict[str, Any] = {"user": cust, "password": users.new_password(cust)}
    show_fields(fields, json)
    if close:
        typer.echo(f"{counted(users.close_connections(cust), 'connection')} closed", err=True)


@app.command("remove")
def producer_remove(cust: Cust, keep_user: KeepUser = False) -> None:
    """Delete a producer's RabbitMQ user and its queues. Needs INGEST_MANAGEMENT_URL.

    The user is deleted first, which closes its connections. The queues for submissions are deleted once they are empty,
    so workers must run if they have messages. If they are not empty within ten minutes, or the command is interrupted,
    run it again. The customer and its tasks stay.
    """
    broker, management, users = _backend("producer remove")

    async def remove(store: Store) -> int:
        has_queues = cust in await store.producers() or await existing_queues(broker, producer_queues(cust))
        if not has_queues and (keep_user or not await asyncio.to_thread(users.exists, cust)):
            raise ConfigurationError(f"{cust} has no queues of its own: see `ingest producer list`")
        if not keep_user:
            await asyncio.to_thread(users.delete, cust)
        if not has_queues:
            return 0
        typer.echo(f"removing the queues of {cust}; this takes 15 s, or longer if they have messages ...", err=True)
        await drain_own_queues(broker, management, cust)
        await store.remove_producer(cust)
        await delete_own_queues(broker, cust)
        return await delete_feedback_queue(broker, cust)

    unread = with_store(remove)
    typer.echo(f"{cust} uses the shared queues" if keep_user else f"{cust} is no longer a producer")
    if unread:
        typer.echo(f"{counted(unread, 'report')} to {cust} had not been read")


@app.command("list")
def producer_list(json: Json = False) -> None:
    """List the direct producers that have queues of their own.

    With INGEST_MANAGEMENT_URL, also how many reports in its feedback queue each has not read.
    """
    weights = with_store(lambda store: store.producers())
    unread = _unread()
    rows = [
        {"cust_id": cust_id, "weight": weight, "unread_feedback": unread.get(feedback_queue(cust_id).name)}
        for cust_id, weight in weights.items()
    ]
    if json:
        print_json(rows)
        return
    for row in rows:
        reports = row["unread_feedback"]
        feedback = "" if reports is None else f"  {counted(int(reports), 'unread report')}"
        typer.echo(f"{row['cust_id']}  weight {row['weight']:g}{feedback}")
    if not rows:
        typer.echo("no direct producer has queues of its own: add one with `ingest producer add CUST`")


def _backend(command: str) -> tuple[RabbitBroker, Management, ProducerUsers]:
    current = settings.load()
    backend = require_rabbitmq(current, command)
    management = backend.management
    if management is None:
        raise ConfigurationError(f"`ingest {command}` needs INGEST_MANAGEMENT_URL=http://user:password@host:15672")
    broker = backend.new_broker("ingest producer")
    return broker, management, ProducerUsers(management, current.trusted_users | {broker.user})


def _unread() -> dict[str, int]:
    """Return the number of messages in each queue, if the management API is set."""
    current = settings.load()
    management = require_rabbitmq(current, "producer list").management if current.management_url else None
    try:
        queues = {} if management is None else management.queues()
    except IngestError as error:
        typer.echo(f"the number of unread reports is unknown: {shown(str(error))}", err=True)
        return {}
    return {name: int(queue["messages"]) for name, queue in queues.items() if "messages" in queue}
