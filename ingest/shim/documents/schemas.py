"""JSON Schemas (2020-12) from the models that validate, so that the documents cannot say anything else."""

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema


class _Plain(GenerateJsonSchema):
    """Without a `title` for every field that only repeats its name."""

    def field_title_should_be_set(self, schema: core_schema.CoreSchema | Any) -> bool:
        return False


def components(*models: Any) -> dict[str, Any]:
    """The schema of each model and of all they refer to, by name, as `components.schemas` holds them."""
    adapters: list[tuple[str, Any, TypeAdapter[Any]]] = [
        (model.__name__, "validation", TypeAdapter(model)) for model in models
    ]
    _, shared = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}", schema_generator=_Plain)
    named: dict[str, Any] = shared["$defs"]
    return {name: named[name] for name in sorted(named)}


def standalone(model: Any) -> dict[str, Any]:
    """The schema of one model, complete in itself."""
    schema = TypeAdapter(model).json_schema(schema_generator=_Plain)
    return {"$schema": _Plain.schema_dialect, **schema}


def ref(model: Any) -> dict[str, str]:
    """A reference to a model of `components`."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}
