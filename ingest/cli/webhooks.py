"""`ingest webhook`: URLs that may be a callback_url."""

from collections.abc import Callable
from typing import Annotated

import msgspec
import typer

from ingest.cli.options import Json
from ingest.cli.registry import Cust, existing_customer, show, with_store
from ingest.domain.customers import Customer
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import Store
from ingest.domain.validation import url_problem
from ingest.domain.webhook_hosts import private_host_problem

app = typer.Typer(help="Webhook URLs that may be a callback_url.", no_args_is_help=True)


@app.command("add")
def webhook_add(
    cust: Cust,
    url: Annotated[str, typer.Argument(metavar="URL")],
    json: Json = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Allow a host in a private network, such as a consumer of your own.")
    ] = False,
) -> None:
    """Register a webhook URL. A callback_url must equal it exactly."""
    check_webhook(url)
    if not allow_private and (problem := private_host_problem(url)):
        raise ConfigurationError(f"{url!r} cannot be a webhook: it {problem}; --allow-private registers it anyway")
    show(_change_webhooks(cust, lambda webhooks: webhooks | {url}), json)


@app.command("remove")
def webhook_remove(cust: Cust, url: Annotated[str, typer.Argument(metavar="URL")], json: Json = False) -> None:
    """Remove a webhook URL. Tasks that were accepted before keep it."""

    def without(webhooks: frozenset[str]) -> frozenset[str]:
        if url not in webhooks:
            registered = ", ".join(sorted(webhooks)) or "none"
            raise ConfigurationError(f"{url} is not a webhook of {cust}; registered: {registered}")
        return webhooks - {url}

    show(_change_webhooks(cust, without), json)


def check_webhook(url: str) -> None:
    """Raise ConfigurationError unless the URL can be a webhook."""
    problem = url_problem(url)
    if problem:
        raise ConfigurationError(f"{url!r} cannot be a webhook: it {problem}")


def _change_webhooks(cust: str, change: Callable[[frozenset[str]], frozenset[str]]) -> Customer:
    async def apply(store: Store) -> Customer:
        customer = await existing_customer(store, cust)
        changed = msgspec.structs.replace(customer, webhooks=change(customer.webhooks))
        await store.save_customer(changed)
        return changed

    return with_store(apply)
