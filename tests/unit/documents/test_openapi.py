"""The OpenAPI document: valid, exact, and the one that the service lives by."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import TypeAdapter, ValidationError

from ingest.domain import validation
from ingest.shim import openapi_document
from tests.e2e.contract import BATCH_CURL, TASK_CURL
from tests.unit.documents.schemas import problems, resolved

DOCUMENT = openapi_document()
PATTERNED = {"data_url": validation.HttpsUrl, "key": validation.IdempotencyKey, "text": validation.NonBlank}


def media_types() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every body in the document, with where it is."""
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            if "requestBody" in operation:
                yield f"{path} request", operation["requestBody"]["content"]["application/json"]
            for status, response in operation["responses"].items():
                for media_type in resolved(DOCUMENT, response)["content"].values():
                    yield f"{path} {status}", media_type


def test_valid_by_the_public_validator() -> None:
    """openapi-spec-validator has nothing to say; `openapi` is 3.1."""
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_every_example_is_valid() -> None:
    """Of bodies, headers and parameters, by the schemas beside them; every JSON body has one, but for documents."""
    for where, media_type in media_types():
        if media_type["schema"] not in ({"type": "object"}, {"type": "string"}):
            assert media_type["examples"], where
        for shown in media_type.get("examples", {}).values():
            assert problems(DOCUMENT, media_type["schema"], shown["value"]) == [], where
    components = DOCUMENT["components"]
    for each in [*components["headers"].values(), *components["parameters"].values()]:
        assert problems(DOCUMENT, each["schema"], each["example"]) == []


def test_request_examples_are_the_contracts() -> None:
    """The bodies of its curl lines."""
    for path, line in (("/v1/tasks", TASK_CURL), ("/v1/tasks/batch", BATCH_CURL)):
        body = json.loads(line[line.index("-d '") + 4 : line.rindex("'")])
        shown = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        assert body in [each["value"] for each in shown.values()]


def test_every_operation_says_all_a_client_needs() -> None:
    """An id of its own, a tag, a summary; each answer carries X-Request-Id; errors have the error's schema."""
    operations = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["tags"]
        assert operation["summary"]
        for response in operation["responses"].values():
            assert "X-Request-Id" in resolved(DOCUMENT, response)["headers"]


@pytest.mark.parametrize("name", PATTERNED)
@given(text=st.text() | st.from_regex(r"\Ahttps?://[^/\s]{0,20}(/.*)?\Z", fullmatch=True))
@example(text="https://a.example\n")
@example(text="https://a:65536/")
@example(text="\ufeff")
@example(text="\x1f\x85\u2029")
@example(text="https://[::1]:443?q#f")
def test_patterns_mean_the_same_to_other_engines(name: str, text: str) -> None:
    """Law: what Python's `re` takes by the published pattern, the validation (in Rust) takes, and nothing else.

    `$` alone differs: Python's also matches before a newline at the end, ECMAScript's does not.
    """
    adapter: TypeAdapter[str] = TypeAdapter(PATTERNED[name])
    schema = adapter.json_schema()
    pattern = re.sub(r"\$$", r"\\Z", schema["pattern"])
    fits = schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", len(text))
    try:
        adapter.validate_python(text)
    except ValidationError:
        accepted = False
    else:
        accepted = True
    assert accepted == (fits and re.search(pattern, text) is not None)
