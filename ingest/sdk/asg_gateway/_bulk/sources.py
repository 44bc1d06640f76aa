"""Reads rows from a file: one task per line of JSONL or per row of CSV, with one row in memory at a time."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from asg_gateway._bulk import table
from asg_gateway._bulk.checks import Fault, faults
from asg_gateway._tasks import MAX_BYTES

_BOM = b"\xef\xbb\xbf"
_MAX_SHOWN = 1_000
"""Characters of an invalid line that a report shows."""


class SourceError(Exception):
    """The file does not have its format; the message says where, and what to change."""


@dataclass(slots=True)
class Row:
    """One task, or its faults. `number` is its (first) line, from 1; `text` is for the report."""

    number: int
    task: dict[str, Any] | None = None
    faults: list[Fault] = field(default_factory=list)
    text: str | None = None


def jsonl(file: BinaryIO) -> Iterator[Row]:
    """Read JSON lines. Empty and blank lines are skipped."""
    number = 0
    while line := file.readline(MAX_BYTES + 1):
        number += 1
        if len(line) > MAX_BYTES:
            fault = f"the line is too large: at most {MAX_BYTES:,} bytes are allowed"
            yield Row(number, None, [("", fault)], _shown(line))
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_BYTES)
            continue
        line = line.removeprefix(_BOM).strip()
        if line:
            yield _parsed(number, line)


def csv_rows(file: BinaryIO) -> Iterator[Row]:
    """Read CSV. The first row names the columns, see `table`. Raises SourceError."""
    csv.field_size_limit(MAX_BYTES)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        if sentence := table.column_problem(columns):
            raise SourceError(sentence)
        number = reader.line_num + 1
        for cells in reader:
            if any(cells):
                task, row_faults = table.task_of(columns, cells)
                row_faults = row_faults or faults(task) or _unsendable(task)
                yield Row(
                    number, task or None, row_faults, None if task else _shown(",".join(cells).encode(errors="replace"))
                )
            number = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f"line {reader.line_num}: {error}") from None
    finally:
        text.detach()


def _parsed(number: int, line: bytes) -> Row:
    try:
        task = json.loads(line.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return Row(number, None, [("", f"the line is not UTF-8 (byte {error.start})")], _shown(line))
    except RecursionError:
        return Row(number, None, [("", "the line is not JSON: nested too deeply")], _shown(line))
    except ValueError as error:
        return Row(number, None, [("", f"the line is not JSON: {error}")], _shown(line))
    if row_faults := faults(task) or _unsendable(task):
        return Row(number, task if isinstance(task, dict) else None, row_faults, _shown(line))
    return Row(number, task)


def _unsendable(task: object) -> list[Fault]:
    """Python decodes some JSON that it cannot encode, or that is not valid UTF-8."""
    try:
        json.dumps(task, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return [("", "the line has text that is not Unicode, or a number out of range")]
    return []


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _shown(line: bytes) -> str:
    return line[:_MAX_SHOWN].decode(errors="replace").strip()
