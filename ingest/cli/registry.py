"""What the commands for customers, keys and webhooks have in common."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from ingest import settings
from ingest.backends import store_backend
from ingest.domain.customers import Customer
from ingest.domain.display import age, escape, json_text
from ingest.domain.errors import ConfigurationError
from ingest.domain.events import rfc3339
from ingest.domain.ports import Store
from ingest.telemetry import logs

Cust = Annotated[str, typer.Argument(metavar="CUST", help="The customer's id: 1 to 64 letters, digits, _ or -.")]
T = TypeVar("T")


def with_store(job: Callable[[Store], Awaitable[T]]) -> T:
    """Run a job on the store of the settings; return its result. Raises ConfigurationError, StoreUnavailable."""

    current = settings.load()
    logs.configure(current.log_level, current.log_format)

    async def work() -> T:
        store = await store_backend(current).open()
        try:
            return await job(store)
        finally:
            await store.close()

    return asyncio.run(work())


async def existing_customer(store: Store, cust: str) -> Customer:
    """Return a customer. Raises ConfigurationError if it does not exist."""
    customer = await store.customer(cust)
    if customer is None:
        raise ConfigurationError(f"there is no customer {cust}: add it with `ingest customer add {cust}`")
    return customer


def fields_of(customer: Customer) -> dict[str, Any]:
    """Return what is printed of a customer, by name."""
    quota = "unlimited" if customer.monthly_quota is None else customer.monthly_quota
    return {
        "cust_id": customer.cust_id,
        "monthly_quota": quota,
        "rate": "none" if customer.rate is None else str(customer.rate),
        "weight": customer.weight,
        "retention": customer.retention,
        "strict": customer.strict,
        "disabled": customer.disabled,
        "webhooks": sorted(customer.webhooks),
    }


def show(customer: Customer, json: bool) -> None:
    """Print a customer."""
    show_fields(fields_of(customer), json)


def show_fields(fields: dict[str, Any], json: bool) -> None:
    """Print fields, one a line; of a list, one element a line."""
    if json:
        print_json(fields)
        return
    for name, value in fields.items():
        first, *others = (
            [_text(name, line) for line in value] or ["none"] if isinstance(value, list) else [_text(name, value)]
        )
        typer.echo(f"{name.replace('_', ' '):<16} {first}")
        for line in others:
            typer.echo(f"{'':<16} {line}")


def customers_text(customers: list[dict[str, Any]]) -> str:
    """Return a table of customers' fields without the webhooks; nothing if there are no customers."""
    if not customers:
        return ""
    names = [name for name in customers[0] if name != "webhooks"]
    rows = [[name.replace("_", " ") for name in names]]
    rows += [[_text(name, customer[name]) for name in names] for customer in customers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _text(name: str, value: Any) -> str:
    """Return a value of a customer or key for people. Secrets stay: a new key is shown, and webhooks as they are."""
    if isinstance(value, dict):
        return escape(_key_text(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "retention":
        return age(value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _key_text(key: dict[str, Any]) -> str:
    name = f" ({key['name']})" if key["name"] else ""
    used = "no use recorded" if key["last_used_at"] is None else f"last used {rfc3339(key['last_used_at'])}"
    revoked = ", revoked" if key["revoked"] else ""
    return f"{key['key_id']}{name}, created {rfc3339(key['created_at'])}, {used}{revoked}"


def print_json(data: Any) -> None:
    """Print JSON on one line."""
    typer.echo(json_text(data))
