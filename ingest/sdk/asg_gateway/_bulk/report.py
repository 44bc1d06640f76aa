"""What a run leaves behind: the lines that were refused and why, and the ids of the tasks that were accepted."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from asg_gateway._bulk.engine import Outcome
from asg_gateway._bulk.items import Chunk
from asg_gateway._bulk.streams import writing
from asg_gateway._checks import Fault


class Report:
    """Writes JSON lines. The errors are those of this run; the ids are appended to those of earlier runs.

    Args:
        errors: a file with `{"line", "errors": [{"field", "error"}], "task" or "text"}` per refused line; created only
            if there is one.
        ids: a file with `{"line", "task_id", "batch_id"}` per accepted task; None for no file.
    """

    def __init__(self, errors: Path, ids: Path | None) -> None:
        self._path = errors
        if errors.is_file():  # not a device such as /dev/null
            errors.unlink()
        self._errors: IO[str] | None = None
        self._ids_path = ids
        self._ids: IO[str] | None = None if ids is None else ids.open("a", encoding="utf-8")

    def add(self, chunk: Chunk, outcome: Outcome | None) -> None:
        """Write the outcome of a chunk. Raises RunError."""
        rows: list[tuple[int, Sequence[Fault], dict[str, Any]]] = [
            (row.number, row.faults, {"text": row.text} if row.task is None else {"task": row.task})
            for row in chunk.invalid
        ]
        if outcome is not None:
            rows += [(item.number, faults, {"task": item.original()}) for item, faults in outcome.refused]
            self._write_ids(outcome)
        if rows:
            self._write_errors(sorted(rows, key=lambda row: row[0]))

    def close(self) -> None:
        """Close the files. Raises RunError."""
        for path, file in ((self._path, self._errors), (self._ids_path, self._ids)):
            if path is not None and file is not None:
                with writing(path):
                    file.close()

    def _write_errors(self, rows: Iterable[tuple[int, Sequence[Fault], dict[str, Any]]]) -> None:
        with writing(self._path):
            if self._errors is None:
                self._errors = self._path.open("w", encoding="utf-8")
            for number, faults, shown in rows:
                errors = [{"field": field, "error": sentence} for field, sentence in faults]
                self._errors.write(_encoded({"line": number, "errors": errors, **shown}) + "\n")
            self._errors.flush()

    def _write_ids(self, outcome: Outcome) -> None:
        if self._ids is None or self._ids_path is None:
            return
        with writing(self._ids_path):
            for result, items in outcome.accepted:
                for item, task_id in zip(items, result.task_ids, strict=False):
                    entry = {"line": item.number, "task_id": task_id, "batch_id": result.batch_id}
                    self._ids.write(json.dumps(entry) + "\n")
            self._ids.flush()


def _encoded(entry: dict[str, Any]) -> str:
    """Encode as JSON that every parser reads: text that is not Unicode is escaped."""
    text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()
