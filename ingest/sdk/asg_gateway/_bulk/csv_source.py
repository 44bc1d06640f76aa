"""Reads rows from CSV. A row that is not valid never hides the rows after it."""

import csv
import io
from collections.abc import Iterator

from asg_gateway._bulk import table
from asg_gateway._bulk.sources import TOO_LARGE, Row, SourceError, checked
from asg_gateway._bulk.text import decoded, encoding_problem, shown
from asg_gateway._tasks import MAX_BYTES

_DELIMITERS = (",", ";", "\t")


def csv_rows(file: io.BufferedReader, encoding: str | None = None, delimiter: str | None = None) -> Iterator[Row]:
    """Read CSV. The first row names the columns, see `table`.

    Args:
        file: the file.
        encoding: see `decoded`.
        delimiter: what separates the cells; None for the one that fits the first row: a comma, semicolon or tab.

    Raises:
        SourceError: the first row does not name the columns.
    """
    csv.field_size_limit(MAX_BYTES)
    text = decoded(file, encoding, "")
    lines = _Lines(text)
    try:
        columns, delimiter = _columns(lines, text.encoding, delimiter)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            lines.start_record()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield lines.invalid(_advice(str(error)))
                continue
            if not any(cells):
                continue
            if problem := encoding_problem("".join(lines.record), text.encoding):
                yield lines.invalid(f"the row {problem}")
            elif len(cells) != len(columns):
                yield lines.invalid(f"the row has {len(cells)} cells, the first row has {len(columns)}")
            else:
                yield checked(lines.first, table.task_of(columns, cells), "".join(lines.record))
    finally:
        text.detach()


def _columns(lines: "_Lines", encoding: str, delimiter: str | None) -> tuple[list[str], str]:
    """Return the columns that the first row names, and the delimiter between them. Raises SourceError."""
    head = next(lines, "")
    if problem := encoding_problem(head, encoding):
        raise SourceError(f"the first row {problem}")
    candidates = _DELIMITERS if delimiter is None else (delimiter,)
    splits = [([cell.strip() for cell in next(csv.reader([head], delimiter=d), [])], d) for d in candidates]
    columns, chosen = max(splits, key=lambda split: len(set(split[0]).intersection(table.REQUIRED)))
    if problem := table.column_problem(columns, chosen):
        raise SourceError(problem)
    return columns, chosen


def _advice(problem: str) -> str:
    if problem == TOO_LARGE:
        return problem
    return (
        f"the row is not valid CSV ({problem}): a cell that starts with a quotation mark must end with one, and within "
        "it each quotation mark must be written twice"
    )


class _Lines:
    """The lines of a file. Those of a record after the first can be read again, as records of their own.

    A quotation mark too many joins a row with the rows after it, so these must be read again.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.record: list[str] = []
        self.first = 1
        self._text = text
        self._again: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        """Return the next line. Raises csv.Error if it is too large."""
        line = self._again.pop() if self._again else self._text.readline(MAX_BYTES + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_BYTES:
            self.record.append(f"{line[:MAX_BYTES]}\n")  # still too large if it is read again
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(MAX_BYTES)
            raise csv.Error(TOO_LARGE)
        self.record.append(line)
        return line

    def start_record(self) -> None:
        """The next line is the first one of a record."""
        self.first += len(self.record)
        self.record = []

    def invalid(self, fault: str) -> Row:
        """Return the first line of the record as an invalid row. The other lines are read again."""
        if len(self.record) > 1:
            self._again += reversed(self.record[1:])
            del self.record[1:]
        return Row(self.first, None, [("", fault)], shown(self.record[0]))
