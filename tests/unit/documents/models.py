"""JSON Schemas (2020-12) of the models in the code. The tests compare the published documents with them."""

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema


class _WithoutFieldTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: core_schema.CoreSchema | Any) -> bool:
        return False


def components(*models: Any) -> dict[str, Any]:
    """Return the schemas of models and of everything that they refer to, by name, as in `components.schemas`."""
    adapters: list[tuple[str, Any, TypeAdapter[Any]]] = [
        (model.__name__, "validation", TypeAdapter(model)) for model in models
    ]
    template = "#/components/schemas/{model}"
    _, shared = TypeAdapter.json_schemas(adapters, ref_template=template, schema_generator=_WithoutFieldTitles)
    named: dict[str, Any] = shared["$defs"]
    return named


def standalone(model: Any) -> dict[str, Any]:
    """Return the schema of one model, without references to other documents."""
    schema = TypeAdapter(model).json_schema(schema_generator=_WithoutFieldTitles)
    return {"$schema": _WithoutFieldTitles.schema_dialect, **schema}
