"""`ingest customer`, `ingest key`, `ingest webhook`: customers, their API keys and webhooks."""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from ingest import settings
from ingest.backends import store_backend
from ingest.cli.dlq_view import age
from ingest.cli.options import Json, seconds
from ingest.domain.customers import (
    ApiKey,
    Customer,
    hash_api_key,
    is_cust_id,
    key_id_of,
    new_api_key,
)
from ingest.domain.errors import ConfigurationError
from ingest.domain.events import rfc3339
from ingest.domain.ports import Store
from ingest.domain.validation import url_problem
from ingest.domain.webhook_hosts import private_host_problem

customer_app = typer.Typer(help="Customers: quota, retention, strictness, disabled or not.", no_args_is_help=True)
key_app = typer.Typer(help="API keys. Only their hashes are stored.", no_args_is_help=True)
webhook_app = typer.Typer(help="Webhook URLs that may be a callback_url.", no_args_is_help=True)

Cust = Annotated[str, typer.Argument(metavar="CUST", help="The customer's id: 1 to 64 letters, digits, _ or -.")]
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

T = TypeVar("T")


@customer_app.command("add")
def customer_add(
    cust: Cust,
    quota: Quota = None,
    retention: Retention = None,
    strict: Strict = None,
    disabled: Disabled = None,
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
        added = _changed(Customer(cust_id=cust), quota, retention, strict, disabled)
        await store.save_customer(added)
        return added

    _show(_with_store(add), json)


@customer_app.command("set")
def customer_set(
    cust: Cust,
    quota: Quota = None,
    retention: Retention = None,
    strict: Strict = None,
    disabled: Disabled = None,
    json: Json = False,
) -> None:
    """Change a customer;

    options that are left out change nothing. Example: ingest customer set acme --quota unlimited
    """

    async def change(store: Store) -> Customer:
        changed = _changed(await _existing(store, cust), quota, retention, strict, disabled)
        await store.save_customer(changed)
        return changed

    _show(_with_store(change), json)


@customer_app.command("list")
def customer_list(json: Json = False) -> None:
    """List all customers."""
    rows = [_fields(customer) for customer in _with_store(lambda store: store.customers())]
    if json:
        _print_json(rows)
        return
    for row in rows:
        typer.echo("  ".join(f"{name}={value}" for name, value in row.items() if name != "webhooks"))


@customer_app.command("show")
def customer_show(cust: Cust, json: Json = False) -> None:
    """Show a customer, the tasks charged this month, and its keys."""

    async def read(store: Store) -> dict[str, Any]:
        customer = await _existing(store, cust)
        month = time.strftime("%Y-%m", time.gmtime())
        keys = [
            {"key_id": key.key_id, "created_at": key.created_at, "revoked": key.revoked}
            for key in await store.keys(cust)
        ]
        return _fields(customer) | {"used_this_month": await store.used(cust, month), "keys": keys}

    _show_fields(_with_store(read), json)


@key_app.command("create")
def key_create(cust: Cust, json: Json = False) -> None:
    """Create an API key and print it. It cannot be shown again."""

    async def create(store: Store) -> dict[str, str]:
        await _existing(store, cust)
        api_key = new_api_key()
        return {"key_id": await save_key(store, cust, api_key), "api_key": api_key}

    _show_fields(_with_store(create), json)


@key_app.command("revoke")
def key_revoke(key_id: Annotated[str, typer.Argument(metavar="KEY_ID")]) -> None:
    """Revoke a key. Shims notice within 2 seconds."""

    async def revoke(store: Store) -> None:
        if not await store.revoke_key(key_id):
            raise ConfigurationError(f"there is no key {key_id}: `ingest customer show CUST` lists a customer's keys")

    _with_store(revoke)
    typer.echo(f"revoked {key_id}")


@webhook_app.command("add")
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
    _show(_change_webhooks(cust, lambda webhooks: webhooks | {url}), json)


@webhook_app.command("remove")
def webhook_remove(cust: Cust, url: Annotated[str, typer.Argument(metavar="URL")], json: Json = False) -> None:
    """Remove a webhook URL. Tasks that were accepted before keep it."""

    def without(webhooks: frozenset[str]) -> frozenset[str]:
        if url not in webhooks:
            registered = ", ".join(sorted(webhooks)) or "none"
            raise ConfigurationError(f"{url} is not a webhook of {cust}; registered: {registered}")
        return webhooks - {url}

    _show(_change_webhooks(cust, without), json)


def check_webhook(url: str) -> None:
    """Raise ConfigurationError unless the URL can be a webhook."""
    problem = url_problem(url)
    if problem:
        raise ConfigurationError(f"{url!r} cannot be a webhook: it {problem}")


async def save_key(store: Store, cust: str, api_key: str) -> str:
    """Store the hash of a key; return the key's public name."""
    key_hash = hash_api_key(api_key)
    key_id = key_id_of(key_hash)
    await store.save_key(ApiKey(key_id=key_id, cust_id=cust, key_hash=key_hash, created_at=int(time.time() * 1000)))
    return key_id


def _change_webhooks(cust: str, change: Callable[[frozenset[str]], frozenset[str]]) -> Customer:
    async def apply(store: Store) -> Customer:
        customer = await _existing(store, cust)
        changed = msgspec.structs.replace(customer, webhooks=change(customer.webhooks))
        await store.save_customer(changed)
        return changed

    return _with_store(apply)


def _with_store(job: Callable[[Store], Awaitable[T]]) -> T:
    async def work() -> T:
        store = await store_backend(settings.load()).open()
        try:
            return await job(store)
        finally:
            await store.close()

    return asyncio.run(work())


async def _existing(store: Store, cust: str) -> Customer:
    customer = await store.customer(cust)
    if customer is None:
        raise ConfigurationError(f"there is no customer {cust}: add it with `ingest customer add {cust}`")
    return customer


def _changed(
    before: Customer, quota: str | None, retention: str | None, strict: bool | None, disabled: bool | None
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
    return msgspec.structs.replace(before, **changes)


def _retention(text: str) -> int:
    """Parse a retention. An entry must outlive the lease of its claim, or a retry would be charged again."""
    retention = seconds(text, "--retention")
    least = math.ceil(2 * settings.load().lease)
    if retention < least:
        raise ConfigurationError(f"--retention must be at least {least}s, twice INGEST_LEASE; it is {text!r}")
    return retention


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,15}", text):
        raise ConfigurationError(f"--quota must be a number of tasks or `unlimited`, it is {text!r}")
    return int(text)


def _fields(customer: Customer) -> dict[str, Any]:
    quota = "unlimited" if customer.monthly_quota is None else customer.monthly_quota
    return {
        "cust_id": customer.cust_id,
        "monthly_quota": quota,
        "retention": customer.retention,
        "strict": customer.strict,
        "disabled": customer.disabled,
        "webhooks": sorted(customer.webhooks),
    }


def _show(customer: Customer, json: bool) -> None:
    _show_fields(_fields(customer), json)


def _show_fields(fields: dict[str, Any], json: bool) -> None:
    if json:
        _print_json(fields)
        return
    for name, value in fields.items():
        first, *others = (
            [_text(name, line) for line in value] or ["none"] if isinstance(value, list) else [_text(name, value)]
        )
        typer.echo(f"{name.replace('_', ' '):<16} {first}")
        for line in others:
            typer.echo(f"{'':<16} {line}")


def _text(name: str, value: Any) -> str:
    """Return a value of a customer or key for people."""
    if isinstance(value, dict):  # a key
        created = rfc3339(value["created_at"])
        return f"{value['key_id']}, created {created}" + (", revoked" if value["revoked"] else "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "retention":
        return age(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_json(data: Any) -> None:
    typer.echo(msgspec.json.encode(data).decode())
