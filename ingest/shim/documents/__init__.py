"""What clients and producers build against: the HTTP API as OpenAPI 3.1, the exchange as AsyncAPI 3.0.

- ``openapi``    paths, parameters, callbacks.
- ``responses``  every status with its headers and bodies.
- ``answers``    the bodies of answers, as types.
- ``asyncapi``   channels, operations, servers; from `domain.topology`.
- ``messages``   what travels in the channels.
- ``schemas``    JSON Schemas from the models that validate.
- ``examples``   the contract's own bodies.
"""

from ingest.shim.documents.asyncapi import SCHEMAS, asyncapi_document, event_schema
from ingest.shim.documents.openapi import openapi_document

__all__ = ["SCHEMAS", "asyncapi_document", "event_schema", "openapi_document"]
