"""The OpenAPI document: it is valid, and its patterns accept what the validation accepts."""

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
    """Every body in the document, with its place."""
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            if "requestBody" in operation:
                yield f"{path} request", operation["requestBody"]["content"]["application/json"]
            for status, response in operation["responses"].items():
                for media_type in resolved(DOCUMENT, response)["content"].values():
                    yield f"{path} {status}", media_type


def test_document_is_valid_openapi_3_1() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_every_example_is_valid() -> None:
    """Every header, every parameter and every JSON body has an example, except the bodies that are documents."""
    for place, media_type in media_types():
        if media_type["schema"] not in ({"type": "object"}, {"type": "string"}):
            assert media_type["examples"], place
        for published in media_type.get("examples", {}).values():
            assert problems(DOCUMENT, media_type["schema"], published["value"]) == [], place
    components = DOCUMENT["components"]
    for component in components["headers"].values():
        assert problems(DOCUMENT, component["schema"], component["example"]) == []
    for component in components["parameters"].values():
        for value in component["schema"]["examples"]:
            assert problems(DOCUMENT, component["schema"], value) == []


def test_request_examples_include_the_bodies_of_the_curl_commands_in_the_contract() -> None:
    for path, line in (("/v1/tasks", TASK_CURL), ("/v1/tasks/batch", BATCH_CURL)):
        body = json.loads(line[line.index("-d '") + 4 : line.rindex("'")])
        examples = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        assert body in [published["value"] for published in examples.values()]


def test_every_operation_has_a_unique_id_a_tag_and_a_summary_and_answers_with_x_request_id() -> None:
    operations = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["tags"]
        assert operation["summary"]
        for response in operation["responses"].values():
            assert "X-Request-Id" in resolved(DOCUMENT, response)["headers"]


def test_every_operation_has_the_errors_that_any_request_can_get() -> None:
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            assert {"400", "405", "408", "431", "500", "505"} <= set(operation["responses"])


def test_docs_page_fills_in_no_parameter() -> None:
    """Swagger UI sends the `example` of a parameter. It shows the `examples` of a schema, and does not send them."""
    for parameter in DOCUMENT["components"]["parameters"].values():
        assert not {"example", "examples"} & set(parameter)
        assert not {"example", "default"} & set(parameter["schema"])


def test_document_has_the_default_dialect() -> None:
    """Swagger UI shows a warning for every other one."""
    assert "jsonSchemaDialect" not in DOCUMENT


def test_every_error_response_has_the_error_schema() -> None:
    for status, response in DOCUMENT["components"]["responses"].items():
        assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}, status


@pytest.mark.parametrize("name", PATTERNED)
@given(text=st.text() | st.from_regex(r"\Ahttps?://[a-fx0-9.:\[\]_-]{0,20}(/.*)?\Z", fullmatch=True))
@example(text="https://a.example\n")
@example(text="https://a:65536/")
@example(text="\ufeff")
@example(text="\x1f\x85\u2029")
@example(text="https://[::1]:443?q#f")
@example(text="https://1.2.3.4.5/")
@example(text="https://*/")
@example(text=f"https://{'a' * 64}/")
@example(text="https://a.example/\u202e")
def test_published_pattern_accepts_in_python_what_the_validation_in_rust_accepts(name: str, text: str) -> None:
    """Python's `$` also matches before a final newline; that of ECMAScript and Rust does not, so it becomes `\\Z`."""
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
