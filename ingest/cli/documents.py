"""`ingest openapi`, `ingest asyncapi`: the API documents."""

from typing import Annotated, Any

import msgspec
import typer

from ingest.domain.errors import ConfigurationError
from ingest.shim import SCHEMAS, asyncapi_document, event_schema, openapi_document


def openapi() -> None:
    """Print the HTTP API as an OpenAPI 3.1 document (JSON)."""
    _print(openapi_document())


def asyncapi(
    schema: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Only the JSON Schema of one message: {', '.join(SCHEMAS)}."),
    ] = None,
) -> None:
    """Print the AMQP exchange as an AsyncAPI 3.0 document (JSON)."""
    if schema is None:
        _print(asyncapi_document())
    elif schema in SCHEMAS:
        _print(event_schema(schema))
    else:
        raise ConfigurationError(f"--schema must be one of {', '.join(SCHEMAS)}")


def _print(document: dict[str, Any]) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
