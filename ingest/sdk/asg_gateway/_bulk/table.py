"""Makes a task of a CSV row.

The columns `type`, `data_url`, `question` and `options` are required; `consensus_threshold`, `callback_url` and
`idempotency_key` are optional; `label_spec.NAME` passes NAME on as text. An empty cell means no value. `options` are
separated by `|`, or are a JSON array.
"""

import json
from collections.abc import Sequence
from typing import Any

from asg_gateway._bulk.checks import Fault

REQUIRED = ("type", "data_url", "question", "options")
OPTIONAL = ("consensus_threshold", "callback_url", "idempotency_key")
_SPEC = "label_spec."


def column_problem(columns: Sequence[str]) -> str | None:
    """Return the problem with the first row of a file, as a sentence; None if there is none."""
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        return (
            f"the first row must name the columns; {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    unknown = [name for name in columns if name not in (*REQUIRED, *OPTIONAL) and not name.startswith(_SPEC)]
    if unknown:
        known = ", ".join((*REQUIRED, *OPTIONAL, f"{_SPEC}NAME"))
        return f"unknown columns: {', '.join(map(repr, unknown))}; the known columns are {known}"
    if len(set(columns)) < len(columns):
        return "a column occurs twice"
    return None


def task_of(columns: Sequence[str], cells: Sequence[str]) -> tuple[dict[str, Any], list[Fault]]:
    """Return the task of one row, and the faults of the row itself."""
    if len(cells) != len(columns):
        return {}, [("", f"the row has {len(cells)} cells, the first row has {len(columns)}")]
    values = {name: cell for name, cell in zip(columns, cells, strict=True) if cell.strip()}
    spec: dict[str, Any] = {name[len(_SPEC) :]: cell for name, cell in values.items() if name.startswith(_SPEC)}
    task: dict[str, Any] = {name: values[name] for name in ("type", "data_url", *OPTIONAL) if name in values}
    if "question" in values:
        spec["question"] = values["question"]
    if "options" in values:
        spec["options"] = _options(values["options"])
    if "consensus_threshold" in task:
        task["consensus_threshold"] = _integer(task["consensus_threshold"])
    return {**task, "label_spec": spec}, []


def _options(cell: str) -> object:
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except ValueError:
            pass  # not JSON: an option may begin with a bracket
    return [option.strip() for option in cell.split("|")]


def _integer(cell: str) -> int | str:
    try:
        return int(cell)
    except ValueError:
        return cell  # the checks report what it must be
