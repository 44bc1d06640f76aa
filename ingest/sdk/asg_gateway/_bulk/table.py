"""A row of a CSV file as a task.

Columns: `type`, `data_url`, `question` and `options` are required; `consensus_threshold`, `callback_url` and
`idempotency_key` may be there; `label_spec.NAME` passes NAME through as text. An empty cell is no value.
`options` are separated by `|`, or are a JSON array.
"""

import json
from collections.abc import Sequence
from typing import Any

from asg_gateway._bulk.checks import Fault

REQUIRED = ("type", "data_url", "question", "options")
OPTIONAL = ("consensus_threshold", "callback_url", "idempotency_key")
_SPEC = "label_spec."


def wrong_columns(columns: Sequence[str]) -> str | None:
    """What is wrong with the first row of a file, as a sentence; None if nothing is."""
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        return (
            f"the first row must name the columns; {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    unknown = [name for name in columns if name not in (*REQUIRED, *OPTIONAL) and not name.startswith(_SPEC)]
    if unknown:
        known = ", ".join((*REQUIRED, *OPTIONAL, f"{_SPEC}NAME"))
        return f"unknown columns: {', '.join(map(repr, unknown))}; known are {known}"
    if len(set(columns)) < len(columns):
        return "a column is there twice"
    return None


def task_of(columns: Sequence[str], cells: Sequence[str]) -> tuple[dict[str, Any], list[Fault]]:
    """The task of one row, and what is wrong with the row itself."""
    if len(cells) != len(columns):
        return {}, [("", f"the row has {len(cells)} cells, the first row has {len(columns)}")]
    given = {name: cell for name, cell in zip(columns, cells, strict=True) if cell.strip()}
    spec: dict[str, Any] = {name[len(_SPEC) :]: cell for name, cell in given.items() if name.startswith(_SPEC)}
    task: dict[str, Any] = {name: given[name] for name in ("type", "data_url", *OPTIONAL) if name in given}
    if "question" in given:
        spec["question"] = given["question"]
    if "options" in given:
        spec["options"] = _options(given["options"])
    if "consensus_threshold" in task:
        task["consensus_threshold"] = _integer(task["consensus_threshold"])
    return {**task, "label_spec": spec}, []


def _options(cell: str) -> object:
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except ValueError:
            pass  # an option may begin with a bracket
    return [option.strip() for option in cell.split("|")]


def _integer(cell: str) -> int | str:
    try:
        return int(cell)
    except ValueError:
        return cell  # the checks say what it must be
