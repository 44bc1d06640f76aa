"""The API documents: OpenAPI 3.1 for HTTP, AsyncAPI 3.0 for the exchange, and a JSON Schema per message.

The JSON files beside this module are the source. `tests/unit/documents` compares them with the models, limits, errors
and topology of the code, and with real answers and events, so a document that differs from the service fails a test.
"""

from functools import cache
from importlib.resources import files
from typing import Any, Final

import msgspec

SCHEMAS: Final = (
    "task.accepted",
    "batch.accepted",
    "submission.duplicate",
    "submission.rejected",
    "dead-letter",
    "trimmed-dead-letter",
)
"""Messages that have a JSON Schema: events by the first words of their routing keys, and dead letters."""


def openapi_document() -> dict[str, Any]:
    """Return the HTTP API as an OpenAPI 3.1 document. Treat it as read-only."""
    return _load("openapi.json")


def asyncapi_document() -> dict[str, Any]:
    """Return the exchange as an AsyncAPI 3.0 document. Treat it as read-only."""
    return _load("asyncapi.json")


def event_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one message of `SCHEMAS`. Treat it as read-only."""
    return _load(f"{name}.schema.json")


@cache
def _load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode((files(__package__) / name).read_bytes())
    return document
