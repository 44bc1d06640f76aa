"""`ingest customer`: customers."""

import math
import re
import time
from typing import Annotated, Any

import msgspec
import typer

from ingest import settings
from ingest.cli.options import Json, rate_limit
from ingest.cli.registry import (
    Cust,
    customers_text,
    existing_customer,
    fields_of,
    print_json,
    show,
    show_fields,
    with_store,
)
from ingest.domain.customers import Customer, is_cust_id
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import Store
from ingest.operations.customers import customer_details
from ingest.operations.parameters import seconds

app = typer.Typer(
    help="Customers: quota, rate limit, weight, retention, strict or not, disabled.", no_args_is_help=True
)

Quota = Annotated[
    str | None, typer.Option(metavar="N", help="New tasks a calendar month (UTC), or `unlimited`.", show_default=False)
]
Retention = Annotated[
    str | None, typer.Option(metavar="TIME", help="How long a key is remembered: 90s, 12h, 7d.", show_default=False)
]
Strict = Annotated[
    bool | None,
    typer.Option("--strict/--no-strict", help="Refuse another body under a used key (422) instead of a replay."),
]
Disabled = Annotated[
    bool | None,
    typer.Option(
        "--disabled/--enabled",
        help="Refuse its requests (403) and submissions (customer_disabled), replays too. Its keys stay. What was "
        "answered 202 before is still accepted. Shims and workers notice within 2 seconds.",
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(
        metavar="N/s|N/m|none",
        help="Submissions over HTTP per second or minute; a batch is one. More are answered 429. By default none: "
        "unlimited.",
        show_default=False,
    ),
]
_WEIGHTS = (0.01, 100.0)
"""The least and the largest weight."""
Weight = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="How much more it gets than a customer with weight 1: of a worker's time, if it has queues of its own "
        "(`ingest producer add`), and of tasks over HTTP before it is heavy. 0.01 to 100; by default 1.",
        show_default=False,
    ),
]


@app.command("add")
def customer_add(
    cust: Cust,
    quota: Quota = None,
    retention: Retention = None,
    strict: Strict = None,
    disabled: Disabled = None,
    rate: Rate = None,
    weight: Weight = None,
    json: Json = False,
) -> None:
    """Add a customer. Example: ingest customer add acme --quota 100000 --retention 30d"""
    if not is_cust_id(cust):
        raise ConfigurationError(
            f"{cust!r} is not a customer id: a customer id has 1 to 64 characters: letters, digits, _ and -"
        )

    async def add(store: Store) -> Customer:
        if await store.customer(cust) is not None:
            raise ConfigurationError(f"customer {cust} exists already: `ingest customer set {cust} …` changes it")
        added = _changed(Customer(cust_id=cust), quota, retention, strict, disabled, rate, weight)
        await store.save_customer(added)
        return added

    show(with_store(add), json)


@app.command("set")
def customer_set(
    cust: Cust,
    quota: Quota = None,
    retention: Retention = None,
    strict: Strict = None,
    disabled: Disabled = None,
    rate: Rate = None,
    weight: Weight = None,
    json: Json = False,
) -> None:
    """Change a customer. Options that are left out change nothing.

    Example: ingest customer set acme --quota unlimited
    """

    async def change(store: Store) -> Customer:
        before = await existing_customer(store, cust)
        changed = _changed(before, quota, retention, strict, disabled, rate, weight)
        await store.save_customer(changed)
        return changed

    show(with_store(change), json)


@app.command("list")
def customer_list(json: Json = False) -> None:
    """List all customers."""
    rows = [fields_of(customer) for customer in with_store(lambda store: store.customers())]
    if json:
        print_json(rows)
        return
    typer.echo(customers_text(rows) or "no customers: add one with `ingest customer add CUST`")


@app.command("show")
def customer_show(cust: Cust, json: Json = False) -> None:
    """Show a customer, the tasks charged this month, and its keys."""

    async def read(store: Store) -> dict[str, Any]:
        details = await customer_details(store, await existing_customer(store, cust), time.time())
        keys = [msgspec.structs.asdict(key) for key in details.keys]
        return fields_of(details.customer) | {"used_this_month": details.used, "keys": keys}

    show_fields(with_store(read), json)


def _changed(
    before: Customer,
    quota: str | None,
    retention: str | None,
    strict: bool | None,
    disabled: bool | None,
    rate: str | None,
    weight: str | None,
) -> Customer:
    changes: dict[str, Any] = {}
    if quota is not None:
        changes["monthly_quota"] = None if quota == "unlimited" else _number(quota)
    if retention is not None:
        changes["retention"] = _retention(retention)
    if strict is not None:
        changes["strict"] = strict
    if disabled is not None:
        changes["disabled"] = disabled
    if rate is not None:
        changes["rate"] = rate_limit(rate, "--rate")
    if weight is not None:
        changes["weight"] = _weight(weight)
    return msgspec.structs.replace(before, **changes)


def _retention(text: str) -> int:
    """Parse a retention. An entry must outlive the lease of its claim, or a retry would be charged again."""
    retention = seconds(text, "--retention")
    least = math.ceil(2 * settings.load().lease)
    if retention < least:
        raise ConfigurationError(f"--retention must be at least {least}s, twice INGEST_LEASE; it is {text!r}")
    return retention


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    least, largest = _WEIGHTS
    if not least <= weight <= largest:  # nan is not, either
        raise ConfigurationError(f"--weight must be a number from {least:g} to {largest:g}, it is {text!r}")
    return weight


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,15}", text):
        raise ConfigurationError(f"--quota must be a number of tasks or `unlimited`, it is {text!r}")
    return int(text)
