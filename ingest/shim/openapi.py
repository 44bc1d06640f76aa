"""The API as an OpenAPI document. 3.0.3, because the Swagger UI that can be had as a package renders no 3.1."""

from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter

from ingest import __version__
from ingest.domain.submissions import MAX_BODY
from ingest.domain.validation import BATCH, TASK

_TASK: Final = {"task_id": "tsk_5tgekadjaahg09daqsamv5kpz3", "status": "pending", "created_at": "2026-04-09T12:00:00Z"}
_BATCH: Final = {"batch_id": "bat_5tgekadjaahg09daqsamv5kpz3", "task_count": 2, "status": "accepted"}
_STRING: Final = {"type": "string"}
_TIME: Final = {"type": "string", "format": "date-time"}
_IDS: Final = {"type": "array", "items": _STRING}
_SPEC: Final = {"question": "Document category?", "options": ["invoice", "receipt", "other"]}
_EXAMPLE: Final = {
    "type": "text_classification",
    "data_url": "https://cdn.example.com/doc.txt",
    "label_spec": _SPEC,
    "consensus_threshold": 3,
    "idempotency_key": "order-10042-line-3",
}

_ERRORS: Final = {
    400: "The body is not JSON, not UTF-8, or a field is wrong. `errors` lists the fields where there are several.",
    401: "No API key, or one that is malformed, unknown or revoked.",
    403: "The month's quota is exhausted.",
    404: "Nothing with this id was submitted by this customer, or it is no longer remembered.",
    405: "The method is not allowed here; `Allow` says which is.",
    409: "A submission with this idempotency key is in progress.",
    413: f"The body is larger than {MAX_BODY} bytes.",
    415: "Content-Type is not application/json.",
    422: "The idempotency key was used with another body, and the customer is set to strict.",
    500: "A defect of the service; `X-Request-Id` names the request in its log.",
    503: "The queue or the store cannot be reached; `Retry-After` says when to repeat.",
}
_ERROR_HEADERS: Final = {401: ["WWW-Authenticate"], 405: ["Allow"], 409: ["Retry-After"], 503: ["Retry-After"]}
_SUBMIT_ERRORS: Final = (400, 401, 403, 405, 409, 413, 415, 422, 500, 503)
_HEADERS: Final = {
    "X-Request-Id": "The request's own, where it sent one, else a fresh one.",
    "Idempotent-Replayed": "`true` on a replay.",
    "Idempotency-Key-Expires": "Until when the key is remembered, an HTTP date.",
    "Idempotency-Payload-Mismatch": "`true` where the replay's body is not the original's.",
    "Preference-Applied": "`return=representation` where the body carries `task_ids`.",
    "Retry-After": "Seconds.",
    "WWW-Authenticate": "`Bearer`.",
    "Allow": "The methods allowed.",
}
_NEW: Final = ["Idempotency-Key-Expires", "X-Request-Id"]
_REPLAY: Final = ["Idempotent-Replayed", "Idempotency-Payload-Mismatch", *_NEW]


@cache
def openapi_document() -> dict[str, Any]:
    """The document, as JSON data."""
    batch = ["Preference-Applied"]
    prefer = _parameter("Prefer", "`return=representation` adds `task_ids` to the answer.")
    return {
        "openapi": "3.0.3",
        "info": {"title": "Submitting tasks", "version": __version__},
        "security": [{"api_key": []}],
        "paths": {
            "/v1/tasks": {
                "post": {
                    "summary": "Submit a task",
                    "operationId": "submit_task",
                    "parameters": [_key()],
                    "requestBody": _request("TaskBody", _EXAMPLE),
                    "responses": {
                        "202": _answer("Accepted.", "Task", _TASK, _NEW),
                        "200": _answer("Replay.", "Task", _TASK | {"idempotent": True}, _REPLAY),
                        **_errors(*_SUBMIT_ERRORS),
                    },
                }
            },
            "/v1/tasks/batch": {
                "post": {
                    "summary": "Submit up to 1,000 tasks, all or none",
                    "operationId": "submit_batch",
                    "parameters": [_key(), prefer],
                    "requestBody": _request("BatchBody", {"tasks": [_without_key(_EXAMPLE)]}),
                    "responses": {
                        "202": _answer("Accepted.", "Batch", _BATCH, _NEW + batch),
                        "200": _answer("Replay.", "Batch", _BATCH | {"idempotent": True}, _REPLAY + batch),
                        **_errors(*_SUBMIT_ERRORS),
                    },
                }
            },
            "/v1/tasks/{task_id}": _lookup("task_id", "Did a task land?", "Task", _TASK),
            "/v1/tasks/batch/{batch_id}": _lookup("batch_id", "Did a batch land?", "Batch", _BATCH),
            "/healthz": _open("The process answers", {200: "It does."}),
            "/readyz": _open("Broker and store can be reached", {200: "They can.", 503: "They cannot."}),
        },
        "components": {
            "securitySchemes": {"api_key": {"type": "http", "scheme": "bearer"}},
            "headers": {name: {"description": text, "schema": _STRING} for name, text in _HEADERS.items()},
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Any]:
    """Requests as the validation itself describes them, and the answers."""
    field = _object({"field": _STRING, "error": _STRING}, "field", "error")
    task = {"task_id": _STRING, "status": {"type": "string", "enum": ["pending"]}, "created_at": _TIME}
    batch = {
        "batch_id": _STRING,
        "task_count": {"type": "integer"},
        "status": {"type": "string", "enum": ["accepted"]},
        "created_at": _TIME,
        "task_ids": _IDS,
    }
    replay = {"idempotent": {"type": "boolean", "enum": [True]}}
    schemas: dict[str, Any] = {}
    adapters: tuple[TypeAdapter[Any], ...] = (TASK, BATCH)
    for adapter in adapters:
        schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs")
        schemas[schema["title"]] = schema
    return schemas | {
        "Task": _object(task | replay, *task),
        "Batch": _object(batch | replay, "batch_id", "task_count", "status"),
        "Error": _object({"error": _STRING, "errors": {"type": "array", "maxItems": 100, "items": field}}, "error"),
    }


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _content(schema: str, example: Any = None) -> dict[str, Any]:
    media = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"application/json": media | ({"example": example} if example else {})}


def _request(schema: str, example: Any) -> dict[str, Any]:
    return {"required": True, "content": _content(schema, example)}


def _answer(description: str, schema: str, example: Any, headers: list[str]) -> dict[str, Any]:
    named = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return {"description": description, "headers": named, "content": _content(schema, example)}


def _errors(*statuses: int) -> dict[str, Any]:
    return {
        str(status): _answer(_ERRORS[status], "Error", None, [*_ERROR_HEADERS.get(status, []), "X-Request-Id"])
        for status in statuses
    }


def _key() -> dict[str, Any]:
    return _parameter("Idempotency-Key", "The same as `idempotency_key` in the body; where both are there, equal.")


def _parameter(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": _STRING}


def _lookup(parameter: str, summary: str, schema: str, example: Any) -> dict[str, Any]:
    responses = {"200": _answer("It did.", schema, example, ["X-Request-Id"]), **_errors(401, 404, 405, 500, 503)}
    where = {"name": parameter, "in": "path", "required": True, "schema": _STRING}
    return {"get": {"summary": summary, "parameters": [where], "responses": responses}}


def _open(summary: str, responses: dict[int, str]) -> dict[str, Any]:
    described = {str(status): {"description": text} for status, text in responses.items()}
    return {"get": {"summary": summary, "security": [], "responses": described}}


def _without_key(task: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in task.items() if name != "idempotency_key"}
