"""JSON Schema (2020-12), by the library that others use."""

from typing import Any

from jsonschema import Draft202012Validator


def problems(document: dict[str, Any], schema: dict[str, Any], value: object) -> list[str]:
    """What is wrong with a value; `schema` may refer to the document's components."""
    validator = Draft202012Validator({**schema, "components": document["components"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node itself, or what it refers to."""
    while "$ref" in node:
        target: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/")]
        node = target
    return node
