"""Reads rows from a file of JSON lines, one in memory at a time. `csv_source` does the same for CSV."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from asg_gateway._bulk.text import decoded, encoding_problem, shown
from asg_gateway._checks import Fault, faults
from asg_gateway._tasks import MAX_BYTES

_MAX_DEPTH = 64
"""More than the gateway accepts, and less than Python can encode."""
_SPACE = " \t\r\n\v\f"
TOO_LARGE = f"the line is too large: at most {MAX_BYTES:,} bytes are allowed"


class SourceError(Exception):
    """The file does not have its format; the message says where, and what to change."""


@dataclass(slots=True)
class Row:
    """One task, or its faults. `number` is its (first) line, from 1; `text` is for the report."""

    number: int
    task: dict[str, Any] | None = None
    faults: list[Fault] = field(default_factory=list)
    text: str | None = None


class _RepeatedNameError(ValueError):
    """The argument is the name."""


def jsonl(file: io.BufferedReader, encoding: str | None = None) -> Iterator[Row]:
    """Read JSON lines. Empty and blank lines are skipped. For `encoding` see `decoded`."""
    text = decoded(file, encoding, "\n")
    number = 0
    try:
        while line := text.readline(MAX_BYTES + 1):
            number += 1
            if len(line) > MAX_BYTES:
                yield Row(number, None, [("", TOO_LARGE)], shown(line))
                while line and not line.endswith("\n"):
                    line = text.readline(MAX_BYTES)
            elif stripped := line.removeprefix("\ufeff").strip(_SPACE):
                yield _parsed(number, stripped, text.encoding)
    finally:
        text.detach()


def _parsed(number: int, line: str, encoding: str) -> Row:
    if problem := encoding_problem(line, encoding):
        return Row(number, None, [("", f"the line {problem}")], shown(line))
    try:
        task = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_unique)
    except _RepeatedNameError as repeated:
        fault = f"the line has the name {str(repeated)[:100]!r} twice in one object: remove one of them"
        return Row(number, None, [("", fault)], shown(line))
    except RecursionError:
        return Row(number, None, [("", "the line is not JSON: nested too deeply")], shown(line))
    except ValueError as error:
        return Row(number, None, [("", f"the line is not JSON: {error}")], shown(line))
    return checked(number, task, line)


def checked(number: int, task: object, line: str) -> Row:
    """Return the row of a task that is read from `line`. It has the task only if it can be sent or reported."""
    if fault := _unsendable(task):
        return Row(number, None, [("", fault)], shown(line))
    row_faults = faults(task)
    return Row(number, task if isinstance(task, dict) else None, row_faults, shown(line) if row_faults else None)


def _unsendable(task: object) -> str | None:
    """Return a problem of a value that Python decodes but cannot encode, or not as valid UTF-8."""
    if _is_deeper(task, _MAX_DEPTH):
        return f"the line is nested too deeply: at most {_MAX_DEPTH} levels are allowed"
    try:
        json.dumps(task, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return "the line has text that is not Unicode, or a number out of range"
    return None


def _is_deeper(value: object, depth: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(children) and (depth == 0 or any(_is_deeper(child, depth - 1) for child in children))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _RepeatedNameError(name)
            seen.add(name)
    return names


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
