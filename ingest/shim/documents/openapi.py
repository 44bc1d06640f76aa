"""The HTTP API as an OpenAPI 3.1 document."""

from functools import cache
from typing import Any, Final

from ingest import __version__
from ingest.domain.event_data import BatchAccepted, BatchId, TaskAccepted, TaskId
from ingest.domain.submissions import MAX_BODY
from ingest.domain.validation import BatchBody, TaskBody
from ingest.shim.documents import examples
from ingest.shim.documents.answers import Batch, BatchAnswer, Error, Healthy, NotReady, Ready, Task, TaskAnswer
from ingest.shim.documents.responses import HEADERS, answer, error_responses, errors
from ingest.shim.documents.schemas import components, ref, standalone

_ABOUT: Final = f"""Labelling tasks enter here, one by one or up to 1,000 at once.

- **2xx means durable**: the task is with a broker that has confirmed it.
- **One key, one task**: repeats of an idempotency key return the same id, with 200 and `"idempotent": true`.
- Every error is `{{"error": "a sentence"}}`. 409 and 503 say in `Retry-After` when to repeat the request.
- Bodies are JSON in UTF-8, at most {MAX_BODY} bytes.

Producers that publish to RabbitMQ find their contract in [/asyncapi.json](/asyncapi.json)."""
_CALLBACK: Final = """Delivery to webhooks is done by a service downstream, not by this one. What it sends, how it signs
and how often it repeats are its contract. What this service hands to it is known, and shown here: the acceptance
events of tasks with a `callback_url` (CloudEvents 1.0), each at least once, always under the same `id`."""
_HEADER_KEY: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": "^[\\u0021-\\u007e]([\\u0020-\\u007e]*[\\u0021-\\u007e])?$",
}
_SUBMIT_ERRORS: Final = (400, 401, 403, 405, 409, 413, 415, 422, 500, 503)
_LOOKUP_ERRORS: Final = (401, 404, 405, 500, 503)
_NEW: Final = ["Idempotency-Key-Expires"]
_REPLAY: Final = ["Idempotent-Replayed", "Idempotency-Payload-Mismatch", *_NEW]


@cache
def openapi_document() -> dict[str, Any]:
    """The document, as JSON data."""
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Submitting tasks",
            "version": __version__,
            "summary": "Human-labelling tasks in, exactly once.",
            "description": _ABOUT,
        },
        "servers": [
            {"url": "/", "description": "Where this document comes from."},
            {"url": "https://api.asgrefinery.io", "description": "Production."},
        ],
        "tags": [
            {"name": "Submit", "description": "Tasks in."},
            {"name": "Look up", "description": "What a client needs after a crash of its own."},
            {"name": "Health", "description": "For load balancers and orchestrators; no key needed."},
            {"name": "Documents", "description": "This one and its siblings; no key needed."},
        ],
        "security": [{"api_key": []}],
        "paths": {
            "/v1/tasks": {"post": _submit_task()},
            "/v1/tasks/batch": {"post": _submit_batch()},
            "/v1/tasks/{task_id}": {"get": _get_task()},
            "/v1/tasks/batch/{batch_id}": {"get": _get_batch()},
            **_open_paths(),
        },
        "components": {
            "securitySchemes": {
                "api_key": {"type": "http", "scheme": "bearer", "description": "The API key, as it was issued."}
            },
            "headers": HEADERS,
            "parameters": _parameters(),
            "responses": error_responses(),
            "schemas": components(
                TaskBody, BatchBody, TaskAnswer, BatchAnswer, Task, Batch, Error, Healthy, Ready, NotReady
            )
            | components(TaskAccepted, BatchAccepted),
        },
    }


def _submit_task() -> dict[str, Any]:
    said = examples.TASK_ANSWER
    return {
        "tags": ["Submit"],
        "summary": "Submit a task",
        "operationId": "submit_task",
        "parameters": _named("Idempotency-Key", "X-Request-Id", "traceparent"),
        "requestBody": _body(TaskBody, {"task": examples.TASK}),
        "responses": {
            "202": answer("Accepted.", TaskAnswer, {"accepted": said}, _NEW),
            "200": answer("Accepted before: a replay.", TaskAnswer, {"replay": said | examples.REPLAY}, _REPLAY),
            **errors(*_SUBMIT_ERRORS),
        },
        "callbacks": _callbacks({"task accepted": TaskAccepted}),
    }


def _submit_batch() -> dict[str, Any]:
    said = examples.BATCH_ANSWER
    full = said | {"task_ids": examples.TASK_IDS}
    accepted = {"accepted": said, "return=representation": full}
    replay = {"replay": said | examples.REPLAY, "return=representation": full | examples.REPLAY}
    return {
        "tags": ["Submit"],
        "summary": "Submit up to 1,000 tasks, all or none",
        "description": "An item whose own key was used before is a replay within the batch. Items with one key are "
        "one task. A top-level `callback_url` is for each task without one.",
        "operationId": "submit_batch",
        "parameters": _named("Idempotency-Key", "Prefer", "X-Request-Id", "traceparent"),
        "requestBody": _body(BatchBody, {"batch": examples.BATCH}),
        "responses": {
            "202": answer("Accepted.", BatchAnswer, accepted, [*_NEW, "Preference-Applied"]),
            "200": answer("Accepted before: a replay.", BatchAnswer, replay, [*_REPLAY, "Preference-Applied"]),
            **errors(*_SUBMIT_ERRORS),
        },
        "callbacks": _callbacks({"task accepted": TaskAccepted, "batch accepted": BatchAccepted}),
    }


def _get_task() -> dict[str, Any]:
    return {
        "tags": ["Look up"],
        "summary": "Did a task land?",
        "operationId": "get_task",
        "parameters": _named("task_id", "X-Request-Id"),
        "responses": {
            "200": answer("It did.", Task, {"task": examples.TASK_ANSWER}, []),
            **errors(*_LOOKUP_ERRORS),
        },
    }


def _get_batch() -> dict[str, Any]:
    said = examples.BATCH_ANSWER | {"created_at": examples.CREATED_AT, "task_ids": examples.TASK_IDS}
    return {
        "tags": ["Look up"],
        "summary": "Did a batch land?",
        "operationId": "get_batch",
        "parameters": _named("batch_id", "X-Request-Id"),
        "responses": {"200": answer("It did.", Batch, {"batch": said}, []), **errors(*_LOOKUP_ERRORS)},
    }


def _open_paths() -> dict[str, Any]:
    healthy = answer("It does.", Healthy, {"healthy": {"status": "ok"}}, [])
    ready = answer("They can.", Ready, {"ready": {"status": "ok", "broker": "ok", "store": "ok"}}, [])
    away = {"error": "not ready", "broker": "unavailable", "store": "ok"}
    not_ready = answer("They cannot.", NotReady, {"not ready": away}, ["Retry-After"])
    document = {"200": _content("The document.", "application/json", {"type": "object"})}
    page = {"200": _content("A page.", "text/html", {"type": "string"})}
    return {
        "/healthz": _open("Health", "healthz", "The process answers", {"200": healthy}),
        "/readyz": _open("Health", "readyz", "Broker and store can be reached", {"200": ready, "503": not_ready}),
        "/openapi.json": _open("Documents", "openapi", "This document", document),
        "/asyncapi.json": _open("Documents", "asyncapi", "The exchange, as AsyncAPI 3.0", document),
        "/docs": _open("Documents", "docs", "This document, to read and to try", page),
    }


def _open(tag: str, operation: str, summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {
        "get": {
            "tags": [tag],
            "summary": summary,
            "operationId": operation,
            "security": [],
            "responses": {**responses, **errors(405, 500)},
        }
    }


def _parameters() -> dict[str, Any]:
    key = (
        "The same as `idempotency_key` in the body, taken literally; where both are there they must be equal. "
        "A key that is not ASCII belongs in the body."
    )
    prefer = "`return=representation` adds `task_ids` to the answer."
    request_id = "Names the request in the service's log; echoed where it is 1 to 200 printable ASCII characters."
    trace = "W3C Trace Context, with `tracestate`: goes on into the events. One that is not valid is ignored."
    return {
        "Idempotency-Key": _parameter("header", "Idempotency-Key", key, _HEADER_KEY, "order-10042-line-3"),
        "Prefer": _parameter("header", "Prefer", prefer, {"type": "string"}, "return=representation"),
        "X-Request-Id": _parameter("header", "X-Request-Id", request_id, {"type": "string"}, examples.REQUEST_ID),
        "traceparent": _parameter("header", "traceparent", trace, {"type": "string"}, examples.TRACEPARENT),
        "task_id": _parameter("path", "task_id", "As it was answered.", _plain(TaskId), examples.TASK_ID),
        "batch_id": _parameter("path", "batch_id", "As it was answered.", _plain(BatchId), examples.BATCH_ID),
    }


def _plain(model: Any) -> dict[str, Any]:
    return {name: value for name, value in standalone(model).items() if name != "$schema"}


def _parameter(where: str, name: str, description: str, schema: dict[str, Any], example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": description,
        "schema": schema,
        "example": example,
    }


def _named(*parameters: str) -> list[dict[str, str]]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in parameters]


def _body(model: Any, bodies: dict[str, Any]) -> dict[str, Any]:
    shown = {name: {"value": value} for name, value in bodies.items()}
    return {"required": True, "content": {"application/json": {"schema": ref(model), "examples": shown}}}


def _content(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    name = "X-Request-Id"
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"}},
        "content": {media_type: {"schema": schema}},
    }


def _callbacks(events: dict[str, Any]) -> dict[str, Any]:
    """`callback_url`; of a batch the top-level one, items may have their own."""
    return {
        name: {
            "{$request.body#/callback_url}": {
                "post": {
                    "summary": f"{name[0].upper()}{name[1:]}, by way of webhook dispatch",
                    "description": _CALLBACK,
                    "security": [],
                    "requestBody": {"content": {"application/cloudevents+json": {"schema": ref(model)}}},
                    "responses": {"2XX": {"description": "Received."}},
                }
            }
        }
        for name, model in events.items()
    }
