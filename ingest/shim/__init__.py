"""The HTTP side: authenticate, validate, admit, publish with a confirm, answer.

- ``app``        the ASGI application.
- ``submit``     the two POSTs.
- ``batcher``    forms micro-batches from what waits.
- ``pipeline``   one micro-batch: one admission, one publish, one ledger write.
- ``auth``       turns an API key into its customer, with a short cache.
- ``lookups``    GET by id, health, documents.
- ``problems``   answers that are not 2xx; 404 is in `lookups` and `app`, and 408, 431 and 505 are in `http`.
- ``http``       limits, framing, bodies, and the server.
- ``documents``  OpenAPI and AsyncAPI.
"""

from ingest.shim.app import Shim
from ingest.shim.documents import SCHEMAS, asyncapi_document, event_schema, openapi_document
from ingest.shim.http.server import shim_server

__all__ = ["SCHEMAS", "Shim", "asyncapi_document", "event_schema", "openapi_document", "shim_server"]
