"""Every status that a client can meet, with its headers, its body's schema, and bodies as the service writes them."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ingest.domain.errors import FieldError, InvalidSubmission, Reason
from ingest.domain.submissions import MAX_BODY
from ingest.shim import problems
from ingest.shim.documents.answers import Error
from ingest.shim.documents.examples import EXPIRES, REQUEST_ID
from ingest.shim.documents.schemas import ref
from ingest.shim.problems import Problem

_FIELDS: Final = ("tasks[1].type is required", "tasks[2].data_url must be an https URL")

_ERRORS: Final[Mapping[int, tuple[str, Mapping[str, Problem]]]] = {
    400: (
        "The body is not JSON, not UTF-8, or a field is wrong. `errors` lists the fields where there are several.",
        {
            "missing field": Problem(400, "label_spec.question is required"),
            "several fields": problems.invalid(
                InvalidSubmission(
                    Reason.INVALID, _FIELDS[0], tuple(FieldError(text.split(" ")[0], text) for text in _FIELDS)
                )
            ),
            "callback_url": Problem(400, "callback_url is not one of your registered webhook URLs"),
            "not JSON": Problem(400, "body is not JSON: trailing comma in object (byte 42)"),
            "unequal keys": Problem(400, "idempotency_key and the Idempotency-Key header must be equal"),
        },
    ),
    401: (
        "No API key, or one that is malformed, unknown or revoked.",
        {"no key": problems.missing_key(), "unknown key": problems.unknown_key()},
    ),
    403: ("The month's quota is exhausted. A replay is never refused.", {"quota": problems.quota_exhausted()}),
    404: (
        "Nothing with this id was submitted by this customer, or it is no longer remembered.",
        {"unknown id": Problem(404, "no task with this id was submitted, or it is no longer remembered")},
    ),
    405: ("The method is not allowed here.", {"method": Problem(405, "PUT is not allowed here")}),
    409: ("A submission with this idempotency key is in progress: repeat it.", {"in progress": problems.contended()}),
    413: (f"The body is larger than {MAX_BODY} bytes.", {"too large": problems.too_large()}),
    415: (
        "Content-Type is not application/json, or there is a Content-Encoding.",
        {"type": problems.unsupported_content_type()},
    ),
    422: (
        "The idempotency key was used with another body, and the customer is set to strict.",
        {"other body": problems.key_conflict()},
    ),
    500: ("A defect of the service; `X-Request-Id` names the request in its log.", {"defect": problems.internal()}),
    503: (
        "The service cannot promise anything now. Repeat the request with the same idempotency key.",
        {
            "queue away": problems.broker_unavailable(),
            "store away": problems.store_unavailable(),
            "overloaded": problems.overloaded(),
            "too slow": problems.deadline_exceeded(),
        },
    ),
}
_ERROR_HEADERS: Final = {401: ["WWW-Authenticate"], 405: ["Allow"], 409: ["Retry-After"], 503: ["Retry-After"]}
_FLAG: Final = {"type": "string", "const": "true"}

HEADERS: Final[dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The request's own, where it sent a printable one, else a fresh one; it is in the log.",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[\\u0021-\\u007e]+$"},
        "example": REQUEST_ID,
    },
    "Idempotent-Replayed": {
        "description": "The key was used before; the body is the original's answer.",
        "required": True,
        "schema": _FLAG,
        "example": "true",
    },
    "Idempotency-Key-Expires": {
        "description": "Until when at least the key is remembered (HTTP date). Without a key there is none.",
        "schema": {"type": "string"},
        "example": EXPIRES,
    },
    "Idempotency-Payload-Mismatch": {
        "description": "Sent where the replay's body is not the original's. The original stands.",
        "schema": _FLAG,
        "example": "true",
    },
    "Preference-Applied": {
        "description": "Sent where the body carries `task_ids` because `Prefer` asked for them.",
        "schema": {"type": "string", "const": "return=representation"},
        "example": "return=representation",
    },
    "Retry-After": {
        "description": "Seconds to wait before the request is repeated.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
        "example": "1",
    },
    "WWW-Authenticate": {
        "description": "RFC 6750; `error` where a key was sent.",
        "required": True,
        "schema": {"type": "string"},
        "example": 'Bearer realm="asg", error="invalid_token"',
    },
    "Allow": {
        "description": "The methods that are allowed.",
        "required": True,
        "schema": {"type": "string"},
        "example": "POST",
    },
}


def answer(description: str, model: Any, examples: Mapping[str, Any], headers: list[str]) -> dict[str, Any]:
    """A response with a JSON body; `X-Request-Id` is in all."""
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in [*headers, "X-Request-Id"]},
        "content": {
            "application/json": {
                "schema": ref(model),
                "examples": {name: {"value": value} for name, value in examples.items()},
            }
        },
    }


def errors(*statuses: int) -> dict[str, Any]:
    """References to the error responses, by status."""
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def error_responses() -> dict[str, Any]:
    """`components.responses`: each error once."""
    return {
        str(status): answer(
            text,
            Error,
            {name: msgspec.json.decode(problem.body()) for name, problem in bodies.items()},
            _ERROR_HEADERS.get(status, []),
        )
        for status, (text, bodies) in _ERRORS.items()
    }
