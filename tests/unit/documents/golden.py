"""Copies of the published documents, so that a change of what others build against is seen.

Renew them with `.venv/bin/python -m tests.unit.documents.golden`.
"""

import json
from pathlib import Path
from typing import Any

from ingest.shim import SCHEMAS, asyncapi_document, event_schema, openapi_document

_HERE = Path(__file__).parent / "golden"


def documents() -> dict[Path, str]:
    """Where each copy is, and what it should be."""
    named: dict[str, dict[str, Any]] = {"openapi": openapi_document(), "asyncapi": asyncapi_document()}
    named |= {f"{name}.schema": event_schema(name) for name in SCHEMAS}
    return {
        _HERE / f"{name}.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        for name, document in named.items()
    }


if __name__ == "__main__":
    _HERE.mkdir(exist_ok=True)
    for path, text in documents().items():
        path.write_text(text)
        print(path)
