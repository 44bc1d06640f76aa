"""`ingest key`: API keys."""

import time
from typing import Annotated, Final

import typer

from ingest.cli.options import Json
from ingest.cli.registry import Cust, existing_customer, show_fields, with_store
from ingest.domain.customers import ApiKey, hash_api_key, key_id_of, new_api_key
from ingest.domain.errors import ConfigurationError
from ingest.domain.ports import Store

app = typer.Typer(help="API keys. Only their hashes are stored.", no_args_is_help=True)


Name = Annotated[
    str, typer.Option(metavar="NAME", help="What it is for: `ingest customer show` prints it.", show_default=False)
]
_LONGEST: Final = 64


@app.command("create")
def key_create(cust: Cust, name: Name = "", json: Json = False) -> None:
    """Create an API key and print it. It cannot be shown again.

    Example: ingest key create acme --name "import job"
    """
    if len(name) > _LONGEST or not name.isprintable():
        raise ConfigurationError(f"--name must have at most {_LONGEST} printable characters; it is {name!r}")

    async def create(store: Store) -> dict[str, str]:
        await existing_customer(store, cust)
        api_key = new_api_key()
        return {"key_id": await save_key(store, cust, api_key, name), "api_key": api_key}

    show_fields(with_store(create), json)


@app.command("revoke")
def key_revoke(key_id: Annotated[str, typer.Argument(metavar="KEY_ID")]) -> None:
    """Revoke a key. Shims notice within 2 seconds."""

    async def revoke(store: Store) -> None:
        if not await store.revoke_key(key_id):
            raise ConfigurationError(f"there is no key {key_id}: `ingest customer show CUST` lists a customer's keys")

    with_store(revoke)
    typer.echo(f"revoked {key_id}")


async def save_key(store: Store, cust: str, api_key: str, name: str = "") -> str:
    """Store the hash of a key; return the key's id."""
    key_hash = hash_api_key(api_key)
    key_id = key_id_of(key_hash)
    created_at = int(time.time() * 1000)
    await store.save_key(ApiKey(key_id=key_id, cust_id=cust, key_hash=key_hash, created_at=created_at, name=name))
    return key_id
