"""HTTP in: authenticate, validate, admit, publish with a confirm, answer.

- ``app``        the ASGI application: hot paths first, the rest through Starlette.
- ``submit``     the two POSTs.
- ``cohort``     what many requests share: one admission, one publish, one ledger write.
- ``coalescer``  gathers what waits into cohorts, without timers.
- ``auth``       API key to customer, with a short cache.
- ``wire``       reading bodies and sending JSON in plain ASGI.
- ``problems``   every error an HTTP client can meet.
- ``lookups``    GET by id, health, documents.
- ``documents``  OpenAPI and AsyncAPI, from the models.
- ``framing``    what httptools lets through although two parsers could read it differently.
- ``server``     uvicorn, without its signal handlers.
"""

from ingest.shim.app import Shim
from ingest.shim.documents import SCHEMAS, asyncapi_document, event_schema, openapi_document
from ingest.shim.http.server import shim_server

__all__ = ["SCHEMAS", "Shim", "asyncapi_document", "event_schema", "openapi_document", "shim_server"]
