"""Makes a task of a CSV row.

The columns `type`, `data_url`, `question` and `options` are required; `consensus_threshold`, `callback_url` and
`idempotency_key` are optional; `label_spec.NAME` passes NAME on as text. An empty cell means no value. `options` are
separated by `|`, or are a JSON array.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

REQUIRED = ("type", "data_url", "question", "options")
OPTIONAL = ("consensus_threshold", "callback_url", "idempotency_key")
_SPEC = "label_spec."
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}


def column_problem(columns: Sequence[str], delimiter: str) -> str | None:
    """Return the problem with the first row of a file, as a sentence; None if there is none."""
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in (*REQUIRED, *OPTIONAL) and not _is_spec(name)]
    twice = [name for name, times in Counter(columns).items() if times > 1]
    same = [name for name in ("question", "options") if name in columns and f"{_SPEC}{name}" in columns]
    if missing:
        return f"the first row must name the columns: {_missing(missing, columns, delimiter)}"
    if twice:
        return f"the first row names a column twice: {', '.join(map(repr, twice))}; remove one of them"
    if unknown:
        known = ", ".join((*REQUIRED, *OPTIONAL, f"{_SPEC}NAME"))
        return f"the first row names unknown columns: {', '.join(map(repr, unknown))}; the known columns are {known}"
    if same:
        return f"the columns {same[0]} and {_SPEC}{same[0]} mean the same: remove one of them"
    return None


def task_of(columns: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    """Return the task of one row, which has a cell for each column."""
    values = {name: cell for name, cell in zip(columns, cells, strict=True) if cell.strip()}
    spec: dict[str, Any] = {name[len(_SPEC) :]: cell for name, cell in values.items() if _is_spec(name)}
    task: dict[str, Any] = {name: values[name] for name in ("type", "data_url", *OPTIONAL) if name in values}
    if "question" in values:
        spec["question"] = values["question"]
    if "options" in values:
        spec["options"] = _options(values["options"])
    if "consensus_threshold" in task:
        task["consensus_threshold"] = _integer(task["consensus_threshold"])
    return {**task, "label_spec": spec}


def _missing(missing: Sequence[str], columns: Sequence[str], delimiter: str) -> str:
    verb = "is" if len(missing) == 1 else "are"
    if not any(columns):
        return f"{', '.join(missing)} {verb} missing, and it is empty"
    found = ", ".join(repr(name[:40]) for name in columns[:20])
    separated = _NAMES.get(delimiter, repr(delimiter))
    return (
        f"{', '.join(missing)} {verb} missing. It has, separated by {separated}: {found}. If its cells are separated "
        "otherwise, set --delimiter"
    )


def _is_spec(name: str) -> bool:
    return name.startswith(_SPEC) and name != _SPEC


def _options(cell: str) -> object:
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            pass  # not JSON: an option may begin with a bracket
    return [option.strip() for option in cell.split("|")]


def _integer(cell: str) -> int | str:
    """Return the number, or the cell, for the checks to report. `int` would take `1_0` and digits of other scripts."""
    text = cell.strip()
    return int(text) if _INTEGER.fullmatch(text) else cell
