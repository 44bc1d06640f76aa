"""`ingest openapi`."""

import msgspec
import typer

from ingest.shim import openapi_document


def openapi() -> None:
    """Print the HTTP API as an OpenAPI document (JSON)."""
    typer.echo(msgspec.json.format(msgspec.json.encode(openapi_document())).decode())
